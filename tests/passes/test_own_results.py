"""What a region returns is its own memory; what shares memory, the caller has already."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from nmcompile.graph.higher_order import is_region
from nmcompile.passes.facts import results_own_memory
from nmcompile.passes.own_results import own_results
from nmcompile.passes.plan import Kernels
from tests.graph.calls import ops
from tests.passes.regions import W, X, caller

aten = torch.ops.aten

#: What a region returns: its first result is used twice by the caller, the others are saved.
SHARED: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "an input": lambda x, w: (aten.silu(x), x),
    "a view of an input": lambda x, w: (x + w, w.t(), x.view(24)),
    "a part of an input": lambda x, w: (x * w, x.split(2)[1]),
    "a result twice": lambda x, w: ((y := x.tanh()), y),
    "a view of a result": lambda x, w: ((y := x.tanh()).t(), y),
    "two views of one value": lambda x, w: ((y := x.tanh()).t(), y[1:]),
}


def rewritten(gm: fx.GraphModule) -> fx.GraphModule:
    own_results(kernels := Kernels(gm.graph))
    assert not list(results_own_memory(kernels))
    gm.graph.lint()
    gm.recompile()
    gm.region.recompile()  # type: ignore[operator, union-attr]
    return gm


class Run(fx.Interpreter):
    """``addresses`` are those of what the regions returned and the caller took."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.addresses: list[int] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is ops.invoke_subgraph:
            return args[0](*args[2:])
        result = super().call_function(target, args, kwargs)
        if target is operator.getitem and isinstance(result, Tensor):
            self.addresses.append(result.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize("name", SHARED)
def test_no_memory_is_taken_twice_and_every_value_is_the_same(name: str) -> None:
    expected = [*SHARED[name](X, W)] * 2
    gm = rewritten(caller(SHARED[name]))
    run = Run(gm)
    for found, value in zip(run.run(X, W), expected, strict=True):
        assert torch.equal(found, value)
    calls = [n for n in gm.graph.nodes if is_region(n)]
    taken = [user for call in calls for user in call.users]
    assert len(taken) >= 2
    if name != "a part of an input":  # which the caller takes with a getitem too
        inputs = {v.untyped_storage().data_ptr() for v in (X, W)}
        assert len({*run.addresses} - inputs) == len(taken)


def test_what_a_region_makes_is_left_alone() -> None:
    gm = caller(lambda x, w: (x + w, (x * w).t(), x.clone()))
    before = str(gm.graph)
    assert str(rewritten(gm).graph) == before


def test_what_the_caller_overwrites_is_copied() -> None:
    write = lambda graph, x: graph.call_function(aten.copy_.default, (x, x))  # noqa: E731
    gm = rewritten(caller(SHARED["an input"], write))
    targets = [n.target for n in gm.region.graph.nodes]  # type: ignore[union-attr]
    assert targets.count(aten.clone.default) == 1
