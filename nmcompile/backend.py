"""The ``torch.compile`` entry: ``torch.compile(model, backend="nm_sparse")``.

    Dynamo graph -> capture -> AOTAutograd -> joint graph -> passes -> partitioner -> Inductor

The passes run inside AOTAutograd as one custom graph pass whose ``uuid`` covers the policy, the
package's sources and the captured graph with its module paths, so that Inductor's caches stay on
and stay right. On a warm cache the passes do not run; the report is then read from beside it.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx

from nmcompile import _torch, passes
from nmcompile._dynamo import Caller, differentiates, ends_in_graph_break, in_compiled_autograd
from nmcompile._torch import CustomGraphPass
from nmcompile.capture import Capture
from nmcompile.codegen.loader import record_kernels
from nmcompile.compressed.hardware import fingerprint
from nmcompile.dense_interpreter import DenseInterpreter
from nmcompile.errors import owned
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.history import History, StoredReports
from nmcompile.nothing_pruned import warn_of_derivatives
from nmcompile.ops import masks as ops
from nmcompile.options import KERNELS, Settings, read_options
from nmcompile.passes.fuse_compress import fuse_compress
from nmcompile.passes.lower_kernels import lower_kernels
from nmcompile.passes.plan import Plan
from nmcompile.policy import Policy
from nmcompile.ranks import check_plans, check_seeds
from nmcompile.regions import check_indices, region_of
from nmcompile.report import GraphReport, Report

log = logging.getLogger(__name__)

_history = History()


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
            ``"operators"`` (the same, launched by operators instead of by Inductor),
            ``"generate"`` (on the CPU as well) or ``"reference"`` (nowhere). ``"nm.region"`` lists
            the paths of the modules that share the code (``nmcompile.compile`` writes it).

    Raises:
        PolicyError, OptionError: what is wrong with the options or the policy file.
    """
    caller = Caller.of(nm_sparse)
    settings = read_options(mode, options, caller.wrapper)
    if in_compiled_autograd():
        # It holds the backward graphs that were pruned together with their forward, and whatever
        # ran eagerly, in which nothing tells a gradient from an activation.
        dense = replace(settings, policy=Policy.recipe("dense"))
        return compile_graph(gm, example_inputs, dense)[0]
    if differentiates(gm):
        warn_of_derivatives(settings.policy)
        settings = replace(settings, policy=Policy.recipe("dense"))
    if settings.region.paths:  # one of many regions, which share their policy and its report
        graph, reports = compile_graph(gm, example_inputs, settings)
        _history.add(settings.policy, settings.policy, reports)
        return graph
    check_indices(settings.policy, caller.whole)
    settings = replace(settings, region=region_of(caller))
    graph, reports = compile_graph(gm, example_inputs, settings)
    complete = caller.in_whole and not ends_in_graph_break(gm)
    _history.add(caller.wrapper, settings.policy, reports, complete, caller.whole)
    return graph


def _reset() -> None:
    """Called by ``torch._dynamo.reset()``."""
    _history.clear()


nm_sparse.reset = _reset  # type: ignore[attr-defined]


def last_report() -> Report:
    """The report of the newest ``torch.compile`` call that ran: all its graphs so far.

    Raises:
        NMError: nothing has been compiled in this process (or since ``torch._dynamo.reset()``).
    """
    return _history.last()


class _AfterTheUsers(CustomGraphPass):  # type: ignore[misc]
    """A pass of ours at one of Inductor's hooks, after the user's own passes there."""

    digest: str

    def __init__(self, settings: Settings, hook: str) -> None:
        configured = settings.inductor.get(hook, getattr(_torch.inductor_config, hook))
        self.before_ours = _torch.graph_passes(configured)

    def __call__(self, graph: fx.Graph) -> None:
        for user_pass in self.before_ours:
            user_pass(graph)
        with owned(type(self).__name__):
            self.run(graph)

    def run(self, graph: fx.Graph) -> None:
        """Our part."""
        raise NotImplementedError

    def uuid(self) -> Any:
        uuids = [p.uuid() if isinstance(p, CustomGraphPass) else None for p in self.before_ours]
        return None if None in uuids else (*uuids, self.digest)


class JointPass(_AfterTheUsers):
    """Runs the user's own joint pass, then ours, and keeps a report of what was done."""

    def __init__(self, settings: Settings, capture: Capture, build_kernels: bool) -> None:
        super().__init__(settings, "joint_custom_pre_pass")
        self.settings = settings
        self.capture = capture
        self.build_kernels = build_kernels
        plain = (bool, int, float, str, type(None))
        values = sorted((k, repr(v)) for k, v in settings.inductor.items() if isinstance(v, plain))
        chosen = (settings.policy.digest, settings.autotune, settings.kernels, settings.region)
        ours = (*chosen, capture.ranks, fingerprint())
        key = (ours, sources_digest(), capture.fingerprint, torch.__version__, values)
        self.digest = hashlib.sha256(repr(key).encode()).hexdigest()
        self.reports: list[GraphReport] = []

    def run(self, graph: fx.Graph) -> None:
        before = readable(graph)
        kinds = operand_kinds(graph, self.capture.kind_of_input)
        chosen, ranks = self.settings, self.capture.ranks
        plan = Plan(graph, kinds, chosen.policy, chosen.autotune, chosen.region, ranks)
        passes.run(plan)
        if self.build_kernels:
            warm_up(graph)
        self.reports.append(GraphReport.of(plan, self.digest, before, readable(graph)))


class PostPass(_AfterTheUsers):
    """Runs the user's own pass on a forward or backward graph, then generates compress kernels."""

    def __init__(self, settings: Settings, digest: str) -> None:
        super().__init__(settings, "post_grad_custom_pre_pass")
        self.devices = KERNELS[settings.kernels]
        self.lower = settings.kernels != "operators"
        self.autotune = settings.autotune
        self.digest = digest

    def run(self, graph: fx.Graph) -> None:
        record_kernels(self.digest, fuse_compress(graph, self.devices))
        if self.lower:
            lower_kernels(graph, self.autotune)


def compile_graph(
    gm: fx.GraphModule, inputs: Sequence[Any], settings: Settings
) -> tuple[Any, list[GraphReport]]:
    """Compile with Inductor and our passes; the report is right on a warm cache as well."""
    capture = Capture.of(gm, inputs)
    joint = JointPass(settings, capture, build_kernels=True)
    stored = StoredReports(joint.digest)
    known = stored.load()
    spare = None if known else fx.GraphModule(gm, copy.deepcopy(gm.graph))
    hooks = {
        "joint_custom_pre_pass": joint,
        "post_grad_custom_pre_pass": PostPass(settings, joint.digest),
    }
    compiled = _torch.compile_fx(gm, inputs, {**settings.inductor, **hooks})
    reports = joint.reports or known
    if reports is None:
        assert spare is not None
        log.info("warm cache without a stored report: tracing once more to plan again")
        reports = plan_only(spare, inputs, settings).reports
    if reports is not known:
        stored.save(reports)
    if capture.ranks is not None:
        ours = (settings.policy.to_toml(), settings.autotune, settings.kernels, settings.region)
        decided = [report.decisions_digest for report in reports]
        check_plans(capture.fingerprint, repr(ours), repr(decided))
        for sharing in {report.sharing for report in reports if report.sharing}:
            check_seeds(sharing)
    return compiled, reports


class Planned(NamedTuple):
    """A graph that was planned but not compiled: ``run`` interprets it."""

    run: Any
    reports: list[GraphReport]
    graphs: list[fx.Graph]  # after the partitioner: forward and backward, or the inference graph


def plan_only(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    settings: Settings,
    interpreter: type[fx.Interpreter] = DenseInterpreter,
) -> Planned:
    """Trace, rewrite and partition, but interpret the graphs instead of generating code.

    By default without their masks, for which kernels would have to be built.
    """
    joint = JointPass(settings, Capture.of(gm, inputs), build_kernels=False)
    graphs: list[fx.Graph] = []

    def interpret(inner: fx.GraphModule, *_: Any, **__: Any) -> Any:
        graphs.append(inner.graph)

        def run(args: list[Any]) -> Any:
            return interpreter(inner).boxed_run(args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    eager_backward = {"force_non_lazy_backward_lowering": True}
    with _torch.functorch_config.patch(enable_autograd_cache=False, **eager_backward):
        patches = {**settings.inductor, "joint_custom_pre_pass": joint}
        compiled = _torch.compile_fx(gm, inputs, patches, inner=interpret)
    return Planned(compiled, joint.reports, graphs)


def warm_up(graph: fx.Graph) -> None:
    """Start to build the mask kernels of a graph while Inductor compiles the rest."""
    for target in (ops.prune, ops.keep_mask):
        for node in graph.find_nodes(op="call_function", target=target):
            x, _, _, n, m, _, method = node.args
            ops.warm_up(target, x.meta["val"], n, m, method)


def readable(graph: fx.Graph) -> str:
    """The graph as code, with shapes and our marks."""
    gm = graph.owning_module or fx.GraphModule({}, graph)
    return str(gm.print_readable(print_output=False, additional_meta=["nm"]))


@functools.cache
def sources_digest() -> str:
    """A digest of every source file of the package: compiled code depends on all of them."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        p for p in root.rglob("*") if p.suffix in (".py", ".h", ".cpp", ".toml", ".jinja")
    ):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
