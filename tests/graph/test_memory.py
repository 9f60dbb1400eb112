"""Which values of a graph are in memory, and who reads them there."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.graph.memory import Memory, bytes_of, is_inlined, readers, reads_inside
from tests.passes.fused import compress, half

aten = torch.ops.aten


def traced(f: Any, *args: torch.Tensor) -> tuple[fx.Graph, dict[Any, fx.Node]]:
    """The graph, and its nodes by what they call."""
    gm = make_fx(f, tracing_mode="fake")(*args)
    return gm.graph, {n.target: n for n in gm.graph.nodes}


def test_what_a_library_call_or_the_caller_reads_is_in_memory() -> None:
    def f(x: Any) -> Any:
        return (x.tanh() @ x, x.sin().t(), x.cos().sum(0), x.exp().view(-1).neg())

    _, nodes = traced(f, half(8, 8))
    memory = Memory([])
    held = {t: memory.holds(nodes[t]) for t in (aten.tanh.default, aten.sin.default)}
    assert held == {aten.tanh.default: True, aten.sin.default: True}
    assert not memory.holds(nodes[aten.cos.default])
    assert not memory.holds(nodes[aten.exp.default])
    assert memory.holds(nodes[aten.neg.default])
    assert memory.holds(nodes[aten.mm.default])
    assert memory.holds(nodes[aten.sum.dim_IntList])


def test_what_reads_apart_needs_nothing_in_memory() -> None:
    _, nodes = traced(lambda x: compress(x.tanh()), half(8, 32))
    kernel, tanh = nodes[torch.ops.nm.compress.default], nodes[aten.tanh.default]
    assert Memory([]).holds(tanh)
    assert not Memory([kernel]).holds(tanh)


def test_views_are_looked_through() -> None:
    _, nodes = traced(lambda x: x.tanh().t().unsqueeze(0).exp() + 1, half(8, 4))
    assert readers(nodes[aten.tanh.default]) == [nodes[aten.exp.default]]
    assert is_inlined(nodes[aten.t.default])
    assert bytes_of(nodes[aten.exp.default]) == 64


def test_products_and_attention_are_no_kernels_of_inductors() -> None:
    def f(x: Any, w: Any) -> Any:
        y = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.nn.functional.conv2d(y, w), y.amax(-1)

    _, nodes = traced(f, half(2, 4, 8, 8), half(4, 4, 1, 1))
    inside = {str(t) for t, n in nodes.items() if reads_inside(n)}
    assert "aten.amax.default" in inside
    assert not any("conv" in name or "attention" in name for name in inside)
