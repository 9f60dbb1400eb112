"""Run a network forward and backward: eagerly, planned and interpreted, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

import nmcompile
from fuzzing.network import Program
from fuzzing.products import FALLBACK, FALLBACK_BACKWARD, LEFT
from nmcompile.graph.higher_order import reachable
from nmcompile.inductor.interpreter import DenseInterpreter, PlannedInterpreter
from nmcompile.inductor.options import Settings
from nmcompile.inductor.plan_only import Planned, plan_only
from nmcompile.reason import Code

aten = torch.ops.aten
PRODUCTS = {
    *map(str, LEFT),
    *(str(aten.convolution.default), str(aten.convolution_backward.default)),
    *(FALLBACK, FALLBACK_BACKWARD),
}
Results = list["Tensor | None"]


def leaves(program: Program) -> list[Tensor]:
    """What is differentiated: inputs, then parameters."""
    every = [*program.inputs, *program.model.parameters()]
    return [x for x in every if x.requires_grad]


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Fixed gradients of the outputs, the same numbers in every dtype."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(y.shape, generator=g).bfloat16().to(y.dtype) for y in outputs]


def differentiable(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs that a gradient can start at."""
    return [y for y in outputs if y.requires_grad]


def run(program: Program, function: Callable[..., Any] | None = None) -> Results:
    """Outputs and gradients of ``program`` with its model replaced by ``function``."""
    outputs = (program.model if function is None else function)(*program.inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [*(y.detach().clone() for y in outputs), *gradients(program, outputs)]


def gradients(
    program: Program,
    outputs: Sequence[Tensor],
    starts: Callable[[Sequence[Tensor]], list[Tensor]] = cotangents,
) -> Results:
    """The gradients of the leaves; None where there is none."""
    ends, wanted = differentiable(outputs), leaves(program)
    if not ends or not wanted:
        return []
    return list(torch.autograd.grad(ends, wanted, starts(ends), allow_unused=True))


class Interpreter(DenseInterpreter):
    """Runs a planned graph with its masks or, where ``dense`` is set, without."""

    dense = False
    #: What is told of every operator of ours that runs: (target, arguments, result).
    watch: Callable[[Any, Any, Any], None] | None = None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if type(self).dense:
            return super().call_function(target, args, kwargs)
        result = PlannedInterpreter.call_function(self, target, args, kwargs)
        if type(self).watch is not None and getattr(target, "namespace", "") == "nm":
            type(self).watch(target, args, result)
        return result


def each_run(reports: Iterable[Any], rows: str) -> list[Any]:
    """The rows of every graph, as often as it runs: a region is listed once for all its calls."""
    return [row for r in reports for row in getattr(r, rows) * r.runs]


def names_of_skipped(skipped: Iterable[Any]) -> list[str]:
    """What a report lists beside products; a product that is decomposed, eager mode has as one."""
    return [s.target for s in skipped if s.reason.code is not Code.DECOMPOSED]


class PlannedNetwork:
    """A network traced, rewritten and partitioned for a policy, to be interpreted many times."""

    def __init__(self, program: Program, policy: nmcompile.Policy, dynamic: bool = False) -> None:
        self.program = program
        self.planned: list[Planned] = []
        self._state = {k: v.clone() for k, v in program.model.state_dict().items()}
        self._inputs = [x.detach().clone() for x in program.inputs]

        class Own(Interpreter):
            pass

        self.interpreter = Own

        def backend(gm: fx.GraphModule, inputs: list[Any]) -> Any:
            self.planned.append(plan_only(gm, inputs, Settings(policy), Own))
            return self.planned[-1].run

        torch._dynamo.reset()
        options: Any = {"fullgraph": True, "dynamic": dynamic}
        self._compiled = torch.compile(program.model, backend=backend, **options)

    def run(self, dense: bool = False) -> Results:
        """Outputs and gradients, from the same state each time."""
        self.program.model.load_state_dict(self._state)
        with torch.no_grad():
            for x, value in zip(self.program.inputs, self._inputs, strict=True):
                x.copy_(value)
        self.interpreter.dense = dense
        return run(self.program, self._compiled)

    @property
    def sites(self) -> list[Any]:
        return [s for p in self.planned for s in each_run(p.reports, "sites")]

    @property
    def skipped(self) -> list[str]:
        return names_of_skipped(s for p in self.planned for s in each_run(p.reports, "skipped"))

    @property
    def graphs(self) -> list[fx.Graph]:
        return [g for p in self.planned for graph in p.graphs for g in reachable(graph)]


def run_compiled(
    program: Program, backend: str, policy: nmcompile.Policy | None = None, dynamic: bool = False
) -> Results:
    """Outputs and gradients through ``torch.compile``."""
    torch._dynamo.reset()
    options: Any = {"options": {"policy": policy}} if policy else {}
    compiled = torch.compile(
        program.model, backend=backend, fullgraph=True, dynamic=dynamic, **options
    )
    return run(program, compiled)


def multiplies(program: Program, dynamic: bool) -> set[tuple[Any, ...]]:
    """The products that AOTAutograd with Inductor's decompositions makes, nothing of ours in it.

    (operator, shapes of its tensors) of each; twins and recomputed ones count once.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    found: set[tuple[Any, ...]] = set()

    def note(gm: fx.GraphModule, inputs: Any) -> Any:
        for node in (n for g in reachable(gm.graph) for n in g.nodes):
            if node.op == "call_function" and str(node.target) in PRODUCTS:
                values = [a.meta["val"] for a in node.all_input_nodes]
                found.add((str(node.target), *(tuple(map(int, v.shape)) for v in values)))
        return gm.forward

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=note, bw_compiler=note, decompositions=select_decomp_table())
    run(program, torch.compile(program.model, backend=backend, fullgraph=True, dynamic=dynamic))
    return found
