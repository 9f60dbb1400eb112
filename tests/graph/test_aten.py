"""Arguments by name, and the sets of operators that only look at their input."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile import _torch
from nmcompile.graph.aten import (
    CASTS,
    CONSTANTS,
    CONVERSIONS,
    FLAT_VIEWS,
    INPUT_GRADIENT,
    OPERANDS,
    TRANSPOSES,
    VIEWS,
    WEIGHT_GRADIENT,
    Convolution,
    ConvolutionBackward,
    added,
    argument,
    constant_value,
    is_item,
    is_matrix_transpose,
    is_product,
    is_scaled_product,
    is_view,
    item_index,
    items,
    operands,
    optional_argument,
    permutation,
    scale_name,
    set_argument,
    view_arguments,
    view_base,
)

aten, prims = torch.ops.aten, torch.ops.prims


def calls(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


def call_of(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A node whose tensors are placeholders."""
    graph = fx.Graph()
    given = [graph.placeholder(f"x{i}") if isinstance(a, Tensor) else a for i, a in enumerate(args)]
    return graph.call_function(target, tuple(given), kwargs)


# Products


PRODUCTS = {
    aten.mm.default: ((3, 4), (4, 5)),
    aten.addmm.default: ((5,), (3, 4), (4, 5)),
    aten.bmm.default: ((2, 3, 4), (2, 4, 5)),
    aten.baddbmm.default: ((2, 3, 5), (2, 3, 4), (2, 4, 5)),
    aten._grouped_mm.default: ((2, 3, 4), (2, 4, 8)),
}


SCALED = {
    aten._scaled_mm.default: lambda a, b, s, t: (a, b, s, t, None, None, torch.float32),
    aten._scaled_mm_v2.default: lambda a, b, s, t: (
        *(a, b, [s], [0], [0], [t], [0], [0], None, torch.float32),
    ),
}


def test_there_is_an_example_of_every_product() -> None:
    assert {*PRODUCTS, *SCALED} == set(OPERANDS)


@pytest.mark.parametrize("target", SCALED, ids=str)
def test_a_product_of_scaled_operands(target: Any) -> None:
    def multiply(a: Tensor, b: Tensor, s: Tensor, t: Tensor) -> Tensor:
        result: Tensor = target(*SCALED[target](a, b.t(), s, t))
        return result

    a, b = (torch.randn(16, 32).to(torch.float8_e4m3fn) for _ in range(2))
    s, t = torch.tensor(2.0), torch.tensor(0.25)
    expected = (a.float() * s) @ (b.float() * t).t()
    torch.testing.assert_close(multiply(a, b, s, t), expected, rtol=1e-2, atol=1e-2)
    (node,) = filter(is_product, make_fx(multiply, tracing_mode="fake")(a, b, s, t).graph.nodes)
    assert is_scaled_product(node)
    assert added(node) is None
    assert [n.name for n in map(view_base, operands(node))] == ["a_1", "b_1"]
    names = (scale_name(node, "self"), scale_name(node, "mat2"))
    assert [str(argument(node, n)).strip("[]") for n in names if n] == ["s_1", "t_1"]


def test_only_scaled_operands_have_scales() -> None:
    node = call_of(aten.mm.default, torch.randn(3, 4), torch.randn(4, 5))
    assert not is_scaled_product(node)
    assert scale_name(node, "self") is None


@pytest.mark.parametrize("target", PRODUCTS, ids=str)
def test_a_product_is_left_times_right_and_what_is_added(target: Any) -> None:
    values = [torch.randn(shape) for shape in PRODUCTS[target]]
    node = call_of(target, *values)
    known = dict(zip(node.args, values, strict=True))
    left, right = operands(node)
    extra = added(node)
    expected = known[left] @ known[right] + (0 if extra is None else known[extra])
    assert is_product(node)
    torch.testing.assert_close(target(*values), expected)


def test_what_is_no_matrix_product() -> None:
    x = torch.randn(4, 4)
    assert not is_product(call_of(aten.mul.Tensor, x, x))
    assert not is_product(call_of(aten.mv.default, x, x[0]))
    assert not is_product(call_of(aten.convolution.default, x, x, None, [1], [0], [1]))


# Arguments


def test_an_argument_is_read_and_written_by_its_name() -> None:
    node = call_of(aten.addmm.default, *map(torch.randn, [(5,), (3, 4), (4, 5)]))
    bias, left, right = node.args
    assert [argument(node, n) for n in ("self", "mat1", "mat2")] == [bias, left, right]
    with node.graph.inserting_before(node):
        other = node.graph.placeholder("other")
    set_argument(node, "mat2", other)
    assert node.args == (bias, left, other)
    assert list(other.users) == [node]
    assert not right.users  # type: ignore[union-attr]


def test_an_argument_that_may_be_missing() -> None:
    pad = aten.constant_pad_nd.default
    x = torch.randn(3, 4)
    assert optional_argument(call_of(pad, x, [0, 1]), "value", 0) == 0
    assert optional_argument(call_of(pad, x, [0, 1], 2.0), "value", 0) == 2.0
    clamp = call_of(aten.clamp.default, x, max=1.0)
    assert [optional_argument(clamp, n) for n in ("min", "max")] == [None, 1.0]


def test_an_argument_that_the_schema_does_not_have_is_an_error() -> None:
    node = call_of(aten.mm.default, torch.randn(3, 4), torch.randn(4, 5))
    with pytest.raises(ValueError, match="not in tuple"):
        argument(node, "mat1")
    with pytest.raises(ValueError, match="not in tuple"):
        set_argument(node, "mat1", None)


def convolution(x: Tensor, w: Tensor) -> Tensor:
    return torch.conv2d(x, w, None, (2, 1), (1, 0), (1, 2), 2)


def test_a_convolution_by_name_in_both_directions() -> None:
    def step(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(convolution(x, w).sum(), (x, w))

    x, w = torch.randn(3, 4, 7, 8, requires_grad=True), torch.randn(6, 2, 3, 2, requires_grad=True)
    graph = make_fx(step)(x, w).graph
    (node,) = Convolution.nodes(graph)
    (back,) = ConvolutionBackward.nodes(graph)
    forward, backward = Convolution.of(node), ConvolutionBackward.of(back)
    given = {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2], "groups": 2}
    for call in (forward, backward):
        assert {name: getattr(call, name) for name in given} == given
        assert call.transposed is False
        assert call.input.meta["val"].shape == x.shape
        assert call.weight.meta["val"].shape == w.shape
    assert forward.bias is None
    assert backward.grad_output.meta["val"].shape == convolution(x, w).shape
    assert backward.output_mask == [True, True, False]
    results = back.meta["val"]
    assert results[INPUT_GRADIENT].shape == x.shape
    assert results[WEIGHT_GRADIENT].shape == w.shape


# Views, conversions, constants


#: What each view has beside its input, of a matrix [4, 6] or, to be squeezed, [1, 6].
ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    aten.view.default: ([6, 4],),
    aten.reshape.default: ([2, 12],),
    aten._unsafe_view.default: ([24],),
    aten.alias.default: (),
    aten.detach.default: (),
    aten.t.default: (),
    aten.transpose.int: (0, 1),
    aten.permute.default: ([1, 0],),
    aten.expand.default: ([2, 4, 6],),
    aten.squeeze.dim: (0,),
    aten.unsqueeze.default: (1,),
}


def test_there_is_an_example_of_every_view() -> None:
    assert set(ARGUMENTS) == set(VIEWS)
    assert set(FLAT_VIEWS) | set(TRANSPOSES) < set(VIEWS)


@pytest.mark.parametrize("target", ARGUMENTS, ids=str)
def test_a_view_shows_the_elements_of_its_first_argument_and_no_others(target: Any) -> None:
    x = torch.arange(24.0).view(4, 6)
    x = x[:1] if target is aten.squeeze.dim else x
    node = call_of(target, x, *ARGUMENTS[target])
    seen: Tensor = target(x, *ARGUMENTS[target])
    assert seen.unique().equal(x.flatten())
    assert (seen.numel() == x.numel()) or target is aten.expand.default
    assert is_view(node)
    assert view_base(node) is node.args[0]
    assert view_arguments(node) == ARGUMENTS[target]
    if target in FLAT_VIEWS:
        assert seen.flatten().equal(x.flatten())
    if target in TRANSPOSES:
        assert seen.equal(x.t())


def test_the_base_of_a_chain_of_views() -> None:
    def f(x: Tensor) -> Tensor:
        return (x * 2).view(3, 8).t().unsqueeze(0)

    *_, last = calls(make_fx(f)(torch.randn(4, 6)).graph)
    assert view_base(last).target is aten.mul.Tensor
    assert view_base(view_base(last)) is view_base(last)


@pytest.mark.parametrize(
    ("target", "args", "shape"),
    [
        (aten.t.default, (), (4, 6)),
        (aten.t.default, (), (4,)),
        (aten.permute.default, ([2, 0, 1],), (4, 5, 6)),
        (aten.permute.default, ([-1, 0, 1],), (4, 5, 6)),
        (aten.transpose.int, (0, 2), (4, 5, 6)),
        (aten.transpose.int, (-1, -2), (4, 5, 6)),
        (aten.transpose.int, (0, -1), ()),
    ],
)
def test_the_order_of_a_transpose(target: Any, args: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    transpose = call_of(target, x, *args)
    transpose.meta["val"] = target(x, *args)
    order = permutation(transpose)
    assert order is not None
    assert x.permute(order).stride() == target(x, *args).stride()


def test_what_is_no_transpose_has_no_order() -> None:
    assert permutation(call_of(aten.view.default, torch.randn(4, 6), [6, 4])) is None


@pytest.mark.parametrize(
    ("target", "args", "is_transpose"),
    [
        (aten.t.default, (), True),
        (aten.permute.default, ([1, 0],), True),
        (aten.permute.default, ([0, 1],), False),
        (aten.permute.default, ([0, 2, 1],), False),
        (aten.view.default, ([6, 4],), False),
        (aten.mul.Tensor, (2,), False),
    ],
)
def test_the_transpose_of_a_matrix(target: Any, args: Any, is_transpose: bool) -> None:
    assert is_matrix_transpose(call_of(target, torch.randn(4, 6), *args)) is is_transpose


@pytest.mark.parametrize("target", CONVERSIONS, ids=str)
def test_a_conversion_keeps_the_values(target: Any) -> None:
    x = torch.arange(6.0)
    to: dict[Any, Any] = {
        aten._to_copy.default: ((), {"dtype": torch.float64}),
        prims.convert_element_type.default: ((torch.float64,), {}),
        aten.clone.default: ((), {}),
    }
    args, kwargs = to[target]
    found = target(x, *args, **kwargs)
    assert found.float().equal(x)
    assert (found.dtype == torch.float64) == (target in CASTS)


@pytest.mark.parametrize(
    "node",
    [call_of(aten.full.default, [], 0.5), call_of(aten.scalar_tensor.default, 0.5)],
    ids=lambda n: str(n.target),
)
def test_a_constant_and_its_number(node: fx.Node) -> None:
    assert node.target in CONSTANTS
    assert constant_value(node) == 0.5


# Several results


def test_the_items_of_an_operator_with_several_results() -> None:
    graph = fx.Graph()
    both = graph.call_function(aten.var_mean.correction, (graph.placeholder("x"),))
    first, second, again = (graph.call_function(operator.getitem, (both, i)) for i in (0, 1, 0))
    other = graph.call_function(aten.neg.default, (first,))
    assert [is_item(n) for n in (first, second, other, both)] == [True, True, False, False]
    assert [item_index(n) for n in (first, second)] == [0, 1]
    assert items(both, 0) == [first, again]
    assert items(both, 2) == []


def test_every_name_in_the_tables_is_of_the_schema() -> None:
    for target, names in OPERANDS.items():
        assert set(names) <= set(_torch.argument_names(target))
    for target in CONSTANTS:
        assert {"fill_value", "s"} & set(_torch.argument_names(target))
