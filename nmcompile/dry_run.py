"""``nmcompile.explain``: what a policy would do to a model, without generating machine code."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import fx, nn

from nmcompile._dynamo import (
    BackendCompilerFailed,
    Caller,
    module_of,
    untraceable,
    untraceable_since,
    without_function_names,
    without_recompile_limit,
)
from nmcompile._torch import functorch_config
from nmcompile.capture.eager import EagerProducts
from nmcompile.capture.fakes import off_meta
from nmcompile.capture.inputs import Capture
from nmcompile.capture.regions import Region, region_of
from nmcompile.codegen.loader import sources
from nmcompile.errors import ArgumentError, NMError, OptionError, shown
from nmcompile.execution.targets import Target, named
from nmcompile.inductor.kept_inputs import check_whole
from nmcompile.inductor.options import CUDA_GRAPHS, Settings
from nmcompile.inductor.plan_only import Planned, plan_only
from nmcompile.inductor.postponed import Postponed
from nmcompile.policy import Policy
from nmcompile.policy.blocks import alike_blocks
from nmcompile.policy.paths import named_modules
from nmcompile.report.artifacts import show_kernels
from nmcompile.report.nothing_pruned import backward_is_apart, no_graph_arrived, some_ran_eagerly
from nmcompile.report.report import GraphReport, Report
from nmcompile.report.rows import EagerRow
from nmcompile.report.saved import saved_for_backward
from nmcompile.report.uncompiled import parameters_in, uncompiled
from nmcompile.undisturbed import undisturbed


@undisturbed
def explain(
    model: Callable[..., Any],
    *args: Any,
    policy: str | PathLike[str] | Policy | Mapping[str, Any] | None = None,
    target: str | Target | None = None,
    each: str | None = None,
    cuda_graphs: bool = False,
    **kwargs: Any,
) -> Report:
    """Report what the policy does to every product of ``model(*args, **kwargs)``.

    The model is traced and called once, operator by operator. On the CPU what is in graphs is
    computed only where something outside of them reads it. Buffers and the random state of the CPU
    are put back.
    In training mode (gradients on and something that requires them) the backward products are
    reported too. What multiplies in no graph, since it cannot be traced, is counted while it runs:
    ``report.eager``, and its share ``report.totals.eager_share``.

    A model may be on fake tensors (``FakeTensorMode``) or on the meta device, which take no memory:
    of 70 billion parameters, say. One on the meta device is looked at as fake tensors on the CPU.

    With a ``target`` everything is decided as for that GPU, whatever the tensors are on. The report
    then has predicted times, the kernels that would be generated, and totals. The graph is that of
    the tensors' device, and differs from a GPU's where PyTorch decomposes operators differently.

    With ``each``, blocks are planned as ``nmcompile.compile(model, policy, each=each)`` compiles
    them: equal ones once, for all of them, and what lies outside of them runs eagerly. Rows then
    name all of their blocks (``layers.{0..79}.fc``), and totals count every one.

    Args:
        model: a module or a function.
        args: its inputs.
        policy: a recipe's name, a path, a ``Policy`` or a mapping; None means ``full``.
        target: a name of ``nmcompile.targets()``; None for the device that the tensors are on.
        each: a glob on ``model.named_modules()``, or ``"re:..."``; None for the model as a whole.
        cuda_graphs: whether steps are replayed as CUDA graphs, where what a call of the sparse
            library takes the host does not count.
        kwargs: its keyword inputs.

    Raises:
        ArgumentError: the model cannot be called.
        OptionError: a target that is not known, or an ``each`` that matches no module.
        PolicyError: the policy cannot be read, or asks for what a site cannot have.
    """
    if not callable(model):
        raise ArgumentError(f"explain takes a module or a function, not {shown(model)}")
    if not isinstance(cuda_graphs, bool):
        raise OptionError(
            f"cuda_graphs is True or False, not {shown(cuda_graphs)}; give an input of the model "
            "that has this name by position"
        )
    chosen = Policy.resolve(policy)
    place = None if target is None else named(target)
    plain = getattr(model, "_orig_mod", model)  # an already compiled module is explained afresh
    check_whole(chosen, [module_of(plain)])
    before = untraceable()
    with (
        without_recompile_limit(),
        without_function_names(),
        off_meta(plain, (args, kwargs)) as (given, keywords),
        functorch_config.patch(donated_buffer=False),  # a step may run its backward twice
        _put_back(plain),
    ):
        planning = _Planning(chosen, place, cuda_graphs, plain)
        try:
            with planning.compiled(each) as run, planning.eager, planning.postponing():
                run(*given, **keywords)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, NMError):
                raise error.inner_exception from None
            raise
        return planning.report(untraceable_since(before))


class _Planning:
    """One call of ``explain``: the reports of graphs, how often each ran, what ran in none."""

    def __init__(
        self, policy: Policy, target: Target | None, cuda_graphs: bool, model: Any
    ) -> None:
        self.policy, self.target, self.cuda_graphs, self.model = policy, target, cuda_graphs, model
        self.whole = module_of(model)
        paths = {m: p for _, p, m in named_modules(self.whole)} if self.whole is not None else {}
        self.postponed = Postponed()
        self.eager = EagerProducts(paths, self.postponed.before)
        self.graphs: list[GraphReport] = []
        self.calls: list[int] = []
        self.parameters: set[str] = set()
        self.planned: dict[tuple[Region, str], Callable[..., Any]] = {}

    @contextmanager
    def compiled(self, each: str | None) -> Iterator[Callable[..., Any]]:
        """The model as a function whose graphs are planned and interpreted."""
        if each is None:
            yield torch.compile(fresh(self.model), backend=self._backend(), dynamic=False)
            return
        if self.whole is None:
            given, model = shown(each), shown(self.model)
            raise OptionError(f"each = {given} names modules, and {model} is none")
        replaced = []
        try:
            for group in alike_blocks(self.whole, each, self.policy):
                backend = self._backend(Region(tuple(group)))
                blocks = list(group.values())
                for block, call in zip(blocks, _sharing(blocks), strict=True):
                    replaced.append((block, block._compiled_call_impl))
                    planned: Any = torch.compile(call, backend=backend, dynamic=False)
                    block._compiled_call_impl = planned
            yield self.whole
        finally:
            for block, before in replaced:
                block._compiled_call_impl = before

    @contextmanager
    def postponing(self) -> Iterator[None]:
        """A context in which graphs are computed when something reads what they give."""

        def compute() -> None:
            with self.eager.unseen():
                self.postponed.compute()

        with self.postponed.read_by_tolist(compute):
            yield
        with self.eager.unseen():
            self.postponed.end()

    def _backend(self, region: Region | None = None) -> Callable[..., Any]:
        def capture(gm: fx.GraphModule, inputs: list[Any]) -> Any:
            shared = region_of(Caller.of(capture)) if region is None else region
            if self.whole is not None:
                self.parameters |= parameters_in(self.whole, inputs, shared)
            # Dynamo traces a block anew where it reads its number; the graph is the same.
            key = shared, Capture.of(gm, inputs).fingerprint
            if key not in self.planned:
                inductor = CUDA_GRAPHS if self.cuda_graphs else {}
                settings = Settings(self.policy, inductor, region=shared, target=self.target)
                self.planned[key] = self._counted(
                    plan_only(gm, inputs, settings, self.postponed.interpreter)
                )
            return self.planned[key]

        return capture

    def _counted(self, planned: Planned) -> Callable[..., Any]:
        """The planned graph, of which is noted that it runs, and what it multiplies is not."""
        found: dict[str, Any] = {"saved": saved_for_backward(planned.graphs)}
        if self.target is not None:
            specs = found["kernel_specs"] = tuple(planned.kernels())
            show_kernels(lambda: sources(specs))
        first = len(self.graphs)
        # What is kept, and for kernels: the graphs inside of another one are part of it.
        self.graphs += [r if r.operator else r.model_copy(update=found) for r in planned.reports]
        self.calls += [0] * len(planned.reports)

        def run(*args: Any) -> Any:
            for number in range(first, first + len(planned.reports)):
                self.calls[number] += 1
            with self.eager.unseen():
                return planned.run(*args)

        return run

    def report(self, unsupported: list[str]) -> Report:
        """What was found; ``unsupported``: what Dynamo could not trace."""
        counted = zip(self.graphs, self.calls, strict=True)
        graphs = tuple(g.model_copy(update={"calls": calls}) for g, calls in counted)
        rows = [EagerRow.of(layer, count) for layer, count in self.eager.found.items()]
        left_out = []
        if self.whole is not None:
            left_out = uncompiled(self.whole, graphs, self.parameters)
        notes = []
        if not graphs:
            name = getattr(self.model, "__name__", type(self.model).__name__)
            notes.append(no_graph_arrived(name, unsupported))
        elif rows and unsupported:
            notes.append(some_ran_eagerly(unsupported))
        if torch.is_grad_enabled() and (apart := backward_is_apart(graphs)) is not None:
            notes.append(apart)
        about = self.target, notes, rows, self.cuda_graphs
        return Report.of(self.policy, graphs, left_out, *about)


@contextmanager
def _put_back(model: Any) -> Iterator[None]:
    """Leave the buffers and the random state of the CPU as they are."""
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    before = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


_calls = itertools.count()


def fresh(model: Callable[..., Any]) -> Callable[..., Any]:
    """A caller with a code object of its own: no earlier compilation changes what is captured."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"explain_{next(_calls)}")
    return call


def _sharing(blocks: list[nn.Module]) -> list[Callable[..., Any]]:
    """Callers of modules with one code object, so that they share what is captured for it."""

    def caller(block: nn.Module) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return block._call_impl(*args, **kwargs)

        return call

    calls = [caller(block) for block in blocks]
    code = calls[0].__code__.replace(co_name=f"explain_{next(_calls)}")
    for call in calls:
        call.__code__ = code
    return calls
