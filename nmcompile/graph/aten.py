"""Which argument of which aten operator is what, and which operators only look at their input.

Positions of arguments stand here alone: everything else reads and writes them by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.ops.call import Call, check_names

aten, prims = torch.ops.aten, torch.ops.prims

# -- matrix products and convolutions ------------------------------------------------------------

#: The names of the operands of a matrix product, left and right, as its schema has them.
OPERANDS: dict[Any, tuple[str, str]] = {
    aten.mm.default: ("self", "mat2"),
    aten.addmm.default: ("mat1", "mat2"),
    aten.bmm.default: ("self", "mat2"),
    aten.baddbmm.default: ("batch1", "batch2"),
    aten._grouped_mm.default: ("self", "mat2"),
    aten._scaled_mm.default: ("self", "mat2"),
    aten._scaled_mm_v2.default: ("self", "mat2"),
}
#: The names of the scales of its operands, left and right, where a product multiplies by them.
_SCALES: dict[Any, tuple[str, str]] = {
    aten._scaled_mm.default: ("scale_a", "scale_b"),
    aten._scaled_mm_v2.default: ("scale_a", "scale_b"),
}
#: The name of what is added to such a product.
_ADDED = {aten.addmm.default: "self", aten.baddbmm.default: "self"}


def is_product(node: fx.Node) -> bool:
    """Whether the node is a matrix product (a convolution is none)."""
    return node.target in OPERANDS


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Left and right operand of a matrix product."""
    left, right = OPERANDS[node.target]
    return argument(node, left), argument(node, right)


def is_scaled_product(node: fx.Node) -> bool:
    """Whether the product takes operands of a few bits, and the scales that belong to them."""
    return node.target in _SCALES


def scale_name(node: fx.Node, operand: str) -> str | None:
    """The name of the scale, or the list of scales, of an operand; None where it has none."""
    if not is_scaled_product(node):
        return None
    return _SCALES[node.target][OPERANDS[node.target].index(operand)]


def added(node: fx.Node) -> Any:
    """What a matrix product adds: the bias of addmm; None where there is none."""
    return argument(node, _ADDED[node.target]) if node.target in _ADDED else None


def is_bias_of_columns(bias: Any, rhs: fx.Node) -> bool:
    """Whether what a product adds is one number for each column of its right operand.

    Sizes are compared as they are written: a comparison of symbolic ones would become a guard, and
    Dynamo would compile once more for the day when they are equal.
    """
    if not isinstance(bias, fx.Node):
        return False
    return str(list(bias.meta["val"].shape)) == str(list(rhs.meta["val"].shape[1:]))


def argument(node: fx.Node, name: str) -> Any:
    """The argument of that name, which must be given by position."""
    return node.args[_torch.argument_names(node.target).index(name)]


def optional_argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """The argument of that name; ``default`` where it is not given."""
    place = _torch.argument_names(node.target).index(name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Replace an argument that is given by position."""
    node.update_arg(_torch.argument_names(node.target).index(name), value)


@dataclass(frozen=True)
class Convolution(Call):
    """``aten.convolution``: input [N, C, ...], weight [O, C / groups, ...] -> [N, O, ...].

    The weight of a transposed convolution is [C, O / groups, ...].
    """

    operator = aten.convolution.default

    input: Any
    weight: Any
    bias: Any
    stride: Any
    padding: Any
    dilation: Any
    transposed: bool
    output_padding: Any
    groups: int


@dataclass(frozen=True)
class ConvolutionBackward(Call):
    """``aten.convolution_backward``: the gradients of input, weight and bias that are asked for."""

    operator = aten.convolution_backward.default

    grad_output: Any
    input: Any
    weight: Any
    bias_sizes: Any
    stride: Any
    padding: Any
    dilation: Any
    transposed: bool
    output_padding: Any
    groups: int
    output_mask: Any


check_names(Convolution)
check_names(ConvolutionBackward)

#: Place of each gradient in the result (and in ``output_mask``) of a convolution's backward.
INPUT_GRADIENT, WEIGHT_GRADIENT, BIAS_GRADIENT = range(3)

# -- views, conversions, constants ---------------------------------------------------------------

#: Views that keep the elements in their order.
FLAT_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
#: The same, where a name of its own for the same value counts as a view.
ALIASES = (*FLAT_VIEWS, aten.alias.default)
TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)
VIEWS = frozenset(
    [
        *ALIASES,
        *TRANSPOSES,
        aten.detach.default,
        aten.expand.default,
        aten.squeeze.dim,
        aten.unsqueeze.default,
    ]
)
CASTS = (aten._to_copy.default, prims.convert_element_type.default)
#: What changes a value's type or place, and nothing that a float32 computation could see.
CONVERSIONS = (*CASTS, aten.clone.default)
#: Constants that a graph builds.
CONSTANTS = (aten.full.default, aten.scalar_tensor.default)


def is_view(node: fx.Node) -> bool:
    """Whether the node only looks at its input in another shape or order."""
    return node.target in VIEWS


def is_view_or_cast(node: fx.Node) -> bool:
    """Whether the node shows its input in another shape, order or dtype."""
    return is_view(node) or node.target in CASTS


def seen_through(
    node: fx.Node, shows: Callable[[fx.Node], bool] = is_view
) -> tuple[fx.Node, list[fx.Node]]:
    """What a value looks at, and the nodes that show it, first to last."""
    chain: list[fx.Node] = []
    while shows(node):
        chain.append(node)
        node = node.all_input_nodes[0]
    return node, chain[::-1]


def view_base(node: fx.Node) -> fx.Node:
    """The value that a chain of views looks at."""
    return seen_through(node)[0]


def cast_base(node: fx.Node) -> fx.Node:
    """The value that a chain of views and casts shows."""
    return seen_through(node, is_view_or_cast)[0]


def view_arguments(node: fx.Node) -> tuple[Any, ...]:
    """What a view has beside its input: a shape, an order."""
    return node.args[1:]


def permutation(node: fx.Node) -> tuple[int, ...] | None:
    """Which dimension of its input each dimension of a transpose is; None for everything else."""
    if node.target not in TRANSPOSES:
        return None
    order = list(range(node.meta["val"].dim()))
    if node.target is aten.permute.default:
        return tuple(order[d] for d in argument(node, "dims"))
    if order:
        swapped: Any = (0, -1) if node.target is aten.t.default else view_arguments(node)
        one, two = (order[d] for d in swapped)
        order[one], order[two] = two, one
    return tuple(order)


def is_matrix_transpose(node: fx.Node) -> bool:
    """Whether the node is the transpose of a matrix."""
    if node.target is aten.permute.default:
        return list(argument(node, "dims")) == [1, 0]
    return node.target is aten.t.default


def constant_value(node: fx.Node) -> Any:
    """The number that a node of ``CONSTANTS`` holds."""
    return argument(node, "fill_value" if node.target is aten.full.default else "s")


# -- operators with several results --------------------------------------------------------------


def is_item(node: fx.Node) -> bool:
    """Whether the node takes one result of an operator with several."""
    return node.target is operator.getitem


def item_index(node: fx.Node) -> Any:
    """Which result a ``getitem`` takes."""
    return node.args[1]


def items(node: fx.Node, index: Any) -> list[fx.Node]:
    """The nodes that take the result ``index`` of an operator with several."""
    return [user for user in node.users if is_item(user) and item_index(user) == index]
