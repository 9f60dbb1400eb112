"""Operands behind views: which are the same, and where a transpose lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.graph.aten import operands
from nmcompile.graph.same_operand import through_transposes, value_of

X = torch.randn(4, 6)


def left(f: Callable[[Tensor], Any]) -> list[fx.Node]:
    """The left operands of the products of ``f(x)``."""
    graph = make_fx(f, tracing_mode="fake")(X).graph
    found = graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    return [operands(node)[0] for node in found]


def test_equal_views_of_one_tensor_are_equal() -> None:
    a, b = left(lambda x: (x.t() @ x, x.t() @ x))
    assert a is not b
    assert value_of(a) == value_of(b)


def test_other_views_and_other_tensors_are_not() -> None:
    a, b, c = left(lambda x: (x.view(6, 4) @ x, x.t() @ x, (x + 1).t() @ x))
    assert len({value_of(a), value_of(b), value_of(c)}) == 3


def test_a_transpose_is_read_where_it_lies_row_by_row() -> None:
    (transposed,) = left(lambda x: x.t() @ x)
    assert through_transposes(transposed, 1) == (transposed.all_input_nodes[0], 0)
    (itself,) = left(lambda x: x @ x.t())
    assert through_transposes(itself, 1) == (itself, 1)
    (twice,) = left(lambda x: x.t().t() @ x.t())
    assert through_transposes(twice, 1) == (twice.all_input_nodes[0].all_input_nodes[0], 1)


def test_a_copied_transpose_is_itself() -> None:
    (copied,) = left(lambda x: x.t().contiguous() @ x)
    assert through_transposes(copied, 1) == (copied, 1)
