"""What ``dishonest`` finds and lets pass; the runner of passes asks it (``passes.run``)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.graph.honest import Snapshot, dishonest
from nmcompile.graph.insert import Inserter

aten = torch.ops.aten


def traced() -> tuple[fx.Graph, fx.Node]:
    """``relu(x w)`` and its product."""
    graph = make_fx(lambda x, w: torch.relu(x @ w), tracing_mode="fake")(
        torch.randn(4, 6), torch.randn(6, 8)
    ).graph
    (product,) = graph.find_nodes(op="call_function", target=aten.mm.default)
    return graph, product


def new(graph: fx.Graph, product: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A node behind the product, as a pass adds one."""
    insert = Inserter(graph)
    with insert.before(product.next):
        return insert.call(product, target, *args)


def test_nodes_that_are_what_they_say_pass() -> None:
    graph, product = traced()
    before = Snapshot.of(graph)
    assert list(dishonest(graph, before)) == []
    split = new(graph, product, aten.split.Tensor, product, 2)
    new(graph, split, operator.getitem, split, 0)
    new(graph, product, aten.permute.default, product, [1, 0])
    assert list(dishonest(graph, before)) == []


def test_what_was_there_before_is_not_looked_at() -> None:
    graph, product = traced()
    product.meta["val"] = product.meta["val"].t()
    assert list(dishonest(graph, Snapshot.of(graph))) == []


@pytest.mark.parametrize(
    "other", [lambda v: v.t(), lambda v: v.half(), lambda v: v.t().contiguous().t()]
)
def test_a_wrong_shape_dtype_or_stride_is_named(other: Callable[[Tensor], Tensor]) -> None:
    graph, product = traced()
    before = Snapshot.of(graph)
    node = new(graph, product, aten.neg.default, product)
    node.meta["val"] = other(node.meta["val"])
    (text,) = dishonest(graph, before)
    assert text.startswith("neg_default = aten.neg.default is ([4, 8], [8, 1], torch.float32")
    assert "meta['val'] says" in text


def test_a_changed_call_and_a_missing_value_are_named() -> None:
    graph, product = traced()
    before = Snapshot.of(graph)
    (relu,) = product.users
    relu.target = aten.t.default
    (text,) = dishonest(graph, before)
    assert text.startswith("relu = aten.t.default is ([8, 4]")
    del relu.meta["val"]
    assert list(dishonest(graph, before)) == ["relu has no meta['val']"]
