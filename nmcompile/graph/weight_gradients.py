"""What becomes a gradient through views, casts, sums and scaling by one number alone.

A product that becomes a parameter's gradient so is a weight gradient whatever its forward looked
like: Inductor may have written that without a product, or a custom Function may have multiplied in
an operator of its own. What a loss computes in its forward, and its backward only scales by its
tangent, is a gradient already, and linear in each of its factors.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.gemm import OperandKind, size_hint
from nmcompile.graph.aten import CONVERSIONS, VIEWS, added, argument, is_product
from nmcompile.graph.operand_kinds import Kinds

aten = torch.ops.aten

_REDUCES = (aten.sum.default, aten.sum.dim_IntList)
#: Linear in one input, and each element of the result a sum of elements of it: also the gradients
#: of a gather, and of a weight that is a part or a join of parameters.
_SUMS = frozenset(
    [
        *_REDUCES,
        *VIEWS,
        *CONVERSIONS,
        aten.add.Tensor,
        aten.neg.default,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        operator.getitem,
        aten.cat.default,
        aten.stack.default,
        aten.constant_pad_nd.default,
        aten.slice_scatter.default,
        aten.select_scatter.default,
        aten.slice_backward.default,
        aten.select_backward.default,
        aten.index_put.default,
        aten._unsafe_index_put.default,
        aten.index_add.default,
        aten.scatter_add.default,
        aten.embedding_dense_backward.default,
    ]
)
_COLLECTIVE = "_c10d_functional"
_SCALES = (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)


_MARK = "nm_weight_gradient"


def mark_weight_gradient(node: Any, summed: int) -> None:
    """Remember of what a graph returns that its caller makes it the gradient of a weight."""
    if isinstance(node, fx.Node):
        node.meta[_MARK] = summed


def weight_gradients(graph: fx.Graph, kinds: Kinds) -> dict[fx.Node, int]:
    """The nodes of an AOTAutograd graph that become the gradient of a weight.

    With how many elements of each are summed into one: what is summed over more than a product's
    batch is no gradient of a matrix, but of a bias.
    """
    weights = {
        _torch.input_origin(node)
        for node in graph.nodes
        if node.op == "placeholder" and kinds[node] is OperandKind.WEIGHT
    }
    outputs = _torch.outputs_of(graph)
    stack = [(n, 1) for n, what, origin in outputs if what == "gradient" and origin in weights]
    stack += [(node, node.meta[_MARK]) for node in graph.nodes if _MARK in node.meta]
    found: dict[fx.Node, int] = {}
    while stack:
        node, summed = stack.pop()
        if node not in found or summed < found[node]:
            found[node] = summed
            inner = summed * _summed(node)
            stack.extend((n, inner) for n in _summands(node))
    return found


def _summed(node: fx.Node) -> int:
    """How many elements of its input a node adds up to one."""
    if node.target not in _REDUCES:
        return 1
    sizes = (node.all_input_nodes[0].meta["val"].numel(), node.meta["val"].numel())
    whole, rest = map(size_hint, sizes)
    return whole // max(1, rest)


def becomes_gradient(node: fx.Node, kinds: Kinds) -> bool:
    """Whether all that is made of a value is a gradient: it, times a tangent of one element."""
    outputs = _torch.outputs_of(node.graph)
    returned = {n for n, what, _ in outputs if what == "gradient"}
    returned -= {n for n, what, _ in outputs if what != "gradient"}
    stack, seen = [node], {node}
    while stack:
        value = stack.pop()
        if not value.users:
            return False
        for user in value.users:
            if user.op == "output":
                if value not in returned:
                    return False
            elif value not in _summands(user):
                if user.target is not aten.copy.default:  # which overwrites it
                    return False
            elif kinds[user] is not OperandKind.GRADIENT and user not in seen:
                seen.add(user)
                stack.append(user)
    return True


def _summands(node: fx.Node) -> list[fx.Node]:
    """The inputs of which a node is linear in each, with the same weight for all elements."""
    if node.op != "call_function":
        return []
    if is_product(node):
        return [n for n in [added(node)] if isinstance(n, fx.Node)]
    if node.target is aten.copy.default:
        return [argument(node, "src")]
    if node.target in _SCALES:
        tensors = [n for n in node.all_input_nodes if not _is_number(n)]
        is_first = tensors == [node.args[0]]
        return tensors if is_first or (len(tensors) == 1 and node.target is aten.mul.Tensor) else []
    is_collective = getattr(node.target, "namespace", None) == _COLLECTIVE
    return node.all_input_nodes if node.target in _SUMS or is_collective else []


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.numel() == 1
