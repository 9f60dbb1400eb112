"""Who reads a saved value only where a gradient is masked: small joint graphs, traced by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.graph.masked_readers import (
    MaskedReaders,
    elementwise_ancestors,
    is_elementwise,
    origin,
    path,
)

aten = torch.ops.aten
SHAPE = (4, 8)


def traced(f: Callable[..., Any], *shapes: tuple[int, ...]) -> fx.Graph:
    return make_fx(f, tracing_mode="fake")(*map(torch.ones, shapes)).graph


def joint(backward: Callable[[Tensor, Tensor], Any]) -> tuple[fx.Node, fx.Node]:
    """The masked gradient and the saved value p, of a graph whose backward is ``backward(g, p)``.

    What follows the masked gradient is the backward, as the partitioner would say.
    """

    def step(w: Tensor, dy: Tensor) -> Any:
        p = w * 3.0
        return backward(torch.where(dy > 1, dy, 0.0), p)

    graph = traced(step, SHAPE, SHAPE)
    (masked,) = graph.find_nodes(op="call_function", target=aten.where.self)
    (p,) = (n for n in graph.nodes if n.args[1:] == (3.0,))
    for node in graph.nodes:
        if node >= masked and node.op != "output":
            node.meta["partitioner_tag"] = "is_backward"
    return masked, p


def only_where_masked(backward: Callable[[Tensor, Tensor], Any]) -> bool:
    masked, p = joint(backward)
    return MaskedReaders(masked, [p], [p]).all_multiply_the_gradient()


@pytest.mark.parametrize(
    "backward",
    [
        lambda g, p: g * p,
        lambda g, p: g - g * torch.tanh(p) ** 2,
        lambda g, p: -(g.view(-1) * p.view(-1)).view(2, 16),
        lambda g, p: (g / (1 + torch.exp(-p))).half(),
        lambda g, p: g * torch.sigmoid(p) + g * p,  # two terms, both zero where the gradient is
        lambda g, p: (g * p).sum(0),  # the sum reads the gradient, not p
    ],
)
def test_a_value_that_only_multiplies_the_gradient(backward: Callable[..., Any]) -> None:
    assert only_where_masked(backward)


@pytest.mark.parametrize(
    "backward",
    [
        lambda g, p: g + p,
        lambda g, p: (g * p, p.sum()),
        lambda g, p: (g * p, p * 2),  # a result of the backward that no gradient multiplies
        lambda g, p: p / g,
        lambda g, p: g * p.sum(0),  # a reduction reads what is not kept
        lambda g, p: g[0] * p,  # an element of the gradient meets others of p
        lambda g, p: g.t() @ p,
        lambda g, p: g * p.flip(0),
    ],
)
def test_a_value_that_is_read_elsewhere(backward: Callable[..., Any]) -> None:
    assert not only_where_masked(backward)


@pytest.mark.parametrize(
    "derivative", [torch.rsqrt, torch.reciprocal, lambda p: p / p, lambda p: 1 / p.sqrt()]
)
def test_a_derivative_that_is_not_finite_at_zero(derivative: Callable[[Tensor], Tensor]) -> None:
    assert not only_where_masked(lambda g, p: g * derivative(p))


def test_gradient_and_derived_nodes_are_told_apart() -> None:
    masked, p = joint(lambda g, p: (-g) * torch.exp(p * 2.0))
    readers = MaskedReaders(masked, [p], [p])
    assert [n.name for n in sorted(readers.gradient)] == ["where", "neg", "mul_2"]
    assert [n.name for n in sorted(readers.derived)] == ["mul_1", "exp"]


# The forward values that an operand follows from


def test_ancestors_have_the_operands_size_and_order() -> None:
    def f(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        p = x @ w  # not elementwise, and still an ancestor: the first one
        return torch.tanh((p + bias).view(2, 16)) * p.view(2, 16)

    graph = traced(f, (4, 6), (6, 8), (8,))
    base = graph.output_node().args[0]
    assert isinstance(base, fx.Node)
    found = elementwise_ancestors(base)
    assert [n.name for n in found] == ["mm", "add", "view", "tanh", "view_1", "mul"]
    assert found == sorted(found)


def test_a_transpose_and_a_broadcast_are_no_ancestors() -> None:
    graph = traced(lambda x, row: x.t() * row, (8, 4), (8,))
    (product,) = graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    assert elementwise_ancestors(product) == []  # it lies as x^T does
    assert is_elementwise(product)
    assert not any(is_elementwise(n) for n in product.all_input_nodes)


def test_the_path_from_what_is_known() -> None:
    def f(x: Tensor) -> Tensor:
        p = x @ x
        return torch.exp(p) * torch.full((), 2.0) + p

    nodes = {n.name: n for n in traced(f, (4, 4)).nodes}
    p, last = nodes["mm"], nodes["add"]
    steps = path(last, [p])
    assert steps is not None
    assert [n.name for n in steps] == ["exp", "full", "mul", "add"]
    assert path(p, [p]) == []
    assert path(last, []) is None  # a product is needed
    assert path(last, [nodes["exp"]]) is None
    assert path(last, [nodes["mul"], p]) == [last]


def test_the_origin_keeps_the_order_and_a_transpose_does_not() -> None:
    graph = traced(lambda x: (x.view(-1).view(8, 4), x.t()), SHAPE)
    (x,) = graph.find_nodes(op="placeholder")
    flat, transposed = graph.output_node().args[0]  # type: ignore[misc]
    assert origin(flat) is x
    assert origin(transposed) is transposed
