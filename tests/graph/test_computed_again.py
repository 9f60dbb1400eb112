"""What the backward of a branch or a loop computes once more is found by its operands."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from nmcompile.graph.computed_again import is_again, mark_again, same_values
from nmcompile.graph.higher_order import bodies
from tests.graph.calls import calling, ops

aten = torch.ops.aten


def forward(x: Tensor, w: Tensor) -> Any:
    h = aten.mm.default(x, w)
    dead = aten.sin.default(x)
    del dead
    return [aten.tanh.default(h), aten.clone.default(h)]


def found(backward: Any, operands: Any) -> list[str]:
    """The names of what ``backward(*operands)`` computes again of ``forward(x, w)``."""

    def write(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        one = g.call_function(ops.map_impl, (n["f"], [n["x"]], [n["w"]]))
        items = [g.call_function(operator.getitem, (one, i)) for i in range(2)]
        return g.call_function(ops.map_impl, (n["b"], operands(g, n, items), []))

    gm = calling(write, f=forward, b=backward)
    for node in gm.graph.nodes:
        node.meta["val"] = torch.zeros(3, 4)
    one, two = gm.graph.find_nodes(op="call_function", target=ops.map_impl)
    ((ours,), (theirs,)) = bodies(one), bodies(two)
    mark_again(same_values(one, ours, theirs))
    return [node.name for node in theirs.gm.graph.nodes if is_again(node)]


def again(x: Tensor, w: Tensor, d: Tensor) -> Any:
    h = aten.mm.default(x, w)
    return [aten.mul.Tensor(d, aten.tanh.default(aten.alias.default(h))), aten.sin.default(x)]


def test_the_same_call_of_the_same_values() -> None:
    assert found(again, lambda g, n, items: [n["x"], n["w"], n["d"]]) == [
        "mm_default",
        "tanh_default",
    ]
    assert found(again, lambda g, n, items: [n["w"], n["x"], n["d"]]) == []


def test_what_the_forward_kept_is_what_it_computed() -> None:
    def kept(h: Tensor, d: Tensor) -> Any:
        return [aten.mul.Tensor(d, aten.tanh.default(h))]

    def reversed_(g: fx.Graph, n: dict[str, fx.Node], items: list[fx.Node]) -> Any:
        return [g.call_function(torch.ops.prims.rev.default, (items[1], [0])), n["d"]]

    assert found(kept, reversed_) == ["tanh_default"]
    assert found(kept, lambda g, n, items: [items[0], n["d"]]) == []
