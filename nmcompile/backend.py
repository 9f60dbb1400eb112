"""The ``torch.compile`` entry: ``torch.compile(model, backend="nm_sparse")``.

    Dynamo graph -> capture -> AOTAutograd -> joint graph -> passes -> partitioner -> Inductor

How a graph is compiled is ``inductor``'s; what was done to it is kept here, for ``last_report``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import fx, nn

from nmcompile._dynamo import (
    Attempt,
    Caller,
    ends_in_graph_break,
    in_compiled_autograd,
    watch,
    wrapper_behind,
)
from nmcompile.capture.regions import check_indices, region_of
from nmcompile.errors import NMError
from nmcompile.inductor.compile_graph import compile_graph
from nmcompile.inductor.kept_inputs import check_whole
from nmcompile.inductor.options import read_options
from nmcompile.policy import Policy
from nmcompile.reason import Code, Reason
from nmcompile.report.history import History
from nmcompile.report.nothing_pruned import (
    call_failed,
    eager_backward,
    limit_is_reached,
    no_graph_arrived,
    warn_of,
)
from nmcompile.report.report import Report
from nmcompile.report.uncompiled import parameters_in

_history = History()
_reached_by: set[int] = set()  # the identities of wrappers, which Dynamo keeps


def nm_sparse(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Compile a Dynamo graph with N:M sparse products; everything else goes through Inductor.

    Args:
        gm: the graph that Dynamo captured.
        example_inputs: its inputs.
        mode: Inductor's ``mode``.
        options: ``{"policy": X}`` (a recipe's name, a path to a TOML file, a ``Policy``) beside
            Inductor's own options. Without a policy: the recipe ``full``. ``"nm.autotune": True``
            measures dense and sparse products on the GPU instead of predicting their times, and
            tunes the compress kernels;
            ``"nm.kernels"`` is ``"auto"`` (compress kernels are generated on CUDA),
            ``"unfused"`` (the same, without the elementwise producers of their operands),
            ``"operators"`` (launched by operators instead of by Inductor),
            ``"generate"`` (on the CPU as well) or ``"reference"`` (nowhere). ``"nm.region"`` lists
            the paths of the modules that share the code (``nmcompile.compile`` writes it), and
            ``"nm.meter"`` numbers a meter (``nmcompile.telemetry`` writes it).

    Raises:
        ArgumentError, PolicyError, OptionError: what is wrong with the options or the policy file.
    """
    caller = Caller.of(nm_sparse)
    _reached(caller.wrapper)
    settings = read_options(mode, options, caller.wrapper)
    if in_compiled_autograd():
        # It holds the backward graphs that were pruned together with their forward, and whatever
        # ran eagerly, in which nothing tells a gradient from an activation.
        dense = replace(settings, policy=Policy.recipe("dense"))
        graph, reports = compile_graph(gm, example_inputs, dense)
        _history.remark(eager_backward(reports))
        return graph
    check_whole(settings.policy, (caller.whole, *caller.roots))
    if settings.region.paths:  # one of many regions, which share their policy and its report
        graph, reports = compile_graph(gm, example_inputs, settings)
        _history.add(settings.policy, settings.policy, reports, alive=caller.whole)
        return graph
    check_indices(settings.policy, caller.whole)
    settings = replace(settings, region=region_of(caller))
    graph, reports = compile_graph(gm, example_inputs, settings)
    complete = caller.in_whole and not ends_in_graph_break(gm)
    held: set[str] = set()
    if caller.whole is not None:
        held = parameters_in(caller.whole, example_inputs, settings.region)
    alive = caller.function if caller.whole is None else caller.whole
    _history.add(caller.wrapper, settings.policy, reports, complete, caller.whole, held, alive)
    return graph


def _reached(wrapper: Any) -> None:
    """Note that a graph of a ``torch.compile`` call has arrived here."""
    if wrapper is not None:
        wrapper.nm_reached = True
        _reached_by.add(id(wrapper))


def _started(attempt: Attempt) -> None:
    if attempt.limit is not None:
        _note(attempt, limit_is_reached(attempt.function, attempt.limit))


def _ended(attempt: Attempt, unsupported: list[str], error: BaseException | None) -> None:
    if getattr(attempt.wrapper, "nm_reached", False):
        return
    name = type(attempt.whole).__name__ if attempt.whole is not None else attempt.function
    if error is None:
        _note(attempt, no_graph_arrived(name, unsupported))
        return
    with suppress(NMError):  # the policy cannot be read, which may be the error
        _note(attempt, call_failed(name, error))


def _note(attempt: Attempt, reason: Reason) -> None:
    kwargs = attempt.wrapper.kwargs
    policy = read_options(kwargs.get("mode"), kwargs.get("options"), attempt.wrapper).policy
    is_news = _history.note(attempt.wrapper, policy, reason, attempt.whole)
    if is_news and reason.code is not Code.FAILED:  # an error speaks for itself
        warn_of(reason, policy)


watch(nm_sparse, _started, _ended)


def _reset() -> None:
    """Called by ``torch._dynamo.reset()``."""
    _history.clear()
    _reached_by.clear()


nm_sparse.reset = _reset  # type: ignore[attr-defined]


def last_report() -> Report:
    """The report of the newest ``torch.compile`` call that ran: all its graphs so far.

    Raises:
        NMError: nothing has been compiled in this process (or since ``torch._dynamo.reset()``).
    """
    return _history.last()


def wrapper_of(call: Any) -> Any:
    """This backend with its options, behind what ``torch.compile`` made; None behind another."""
    wrapper = wrapper_behind(call)
    return wrapper if getattr(wrapper, "compiler_fn", None) is nm_sparse else None


def has_run(wrapper: Any) -> bool:
    """Whether a graph was compiled for this very backend, since Dynamo was reset."""
    return id(wrapper) in _reached_by


def report_of_call(call: Any, module: nn.Module) -> tuple[Report, Sequence[str]] | None:
    """The report of what ``torch.compile`` made of a module with this backend; None of another one.

    It is empty where nothing has run yet. Beside it, the modules that share the code (``each``).
    """
    wrapper = wrapper_of(call)
    if wrapper is None:
        return None
    settings = read_options(wrapper.kwargs.get("mode"), wrapper.kwargs.get("options"))
    policy = settings.policy
    report = _history.of(policy, [module], wrapper) or Report.of(policy, ())
    return report, settings.region.paths


def report_of(policy: Policy, modules: Collection[nn.Module]) -> Report | None:
    """The report of what was compiled for these modules with this policy; None before there is any.

    Args:
        policy: the very object that the modules were compiled with.
        modules: those that may run code of an earlier ``torch.compile`` call with an equal one.
    """
    return _history.of(policy, modules)
