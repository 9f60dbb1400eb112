"""A gather that takes whole matrices of a stack: experts by the token that they are for.

    index(w [E, O, I], [ids [T]])                      -> [T, O, I], a weight
    view(embedding(w [E, O * I], ids [T]), [T, O, I])  -> a weight, where a product reads it
    embedding(w [V, D], ids [T])                       -> [T, D], an activation
    view(index(w [E, O, I], [ids [T]]), [T * O, I])    -> an activation, where a product reads it

What is gathered must not be a dimension of the product: a row for each token is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from nmcompile.gemm import OperandKind, size_hint
from nmcompile.graph.aten import argument, permutation

aten = torch.ops.aten

_INDEX = (aten.index.Tensor, aten._unsafe_index.Tensor)
_ALONG = (aten.index_select.default, aten.gather.default)
_GATHERS = (aten.embedding.default, *_INDEX, *_ALONG)


class Gather(NamedTuple):
    """``is_whole``: each matrix of the operand lies inside of one of what was gathered."""

    table: fx.Node
    is_whole: bool


def is_whole_gather(node: fx.Node) -> bool:
    """Whether the node gathers along dimensions before the last two of its first input."""
    dims = _gathered(node)
    return bool(dims) and max(dims) < node.all_input_nodes[0].meta["val"].dim() - 2


def gather_of(operand: fx.Node, kinds: Mapping[fx.Node, Any]) -> Gather | None:
    """What an operand of a matrix product was gathered from, through views, casts and scaling.

    None where data takes part in it: a weight times an activation is an activation.
    """
    shape = operand.meta["val"].shape
    node, is_whole = operand, True
    while node.op == "call_function" and node.target not in _GATHERS:
        order = permutation(node)
        if order is not None:
            is_whole = is_whole and {*order[-2:]} == {len(order) - 2, len(order) - 1}
        inputs = node.all_input_nodes
        like = [n for n in inputs if _size(n) == _size(node)] or inputs
        if not like or (len(inputs) > 1 and like is inputs):
            return None  # a join of several
        if any(kinds[n] is OperandKind.ACTIVATION for n in inputs if n is not like[0]):
            return None
        node = like[0]
    dims = _gathered(node)
    if not dims:
        return None
    table = node.all_input_nodes[0]
    kept = [size for d, size in enumerate(table.meta["val"].shape) if d > max(dims)]
    row, tile = torch.Size(map(size_hint, kept)).numel(), tuple(map(size_hint, shape[-2:]))
    # A vector is a row for each token; a matrix inside of one row was cut out of it.
    is_cut = 1 in tile and len(kept) < 2
    inside = tile[0] * tile[1] > 0 and row % (tile[0] * tile[1]) == 0
    return Gather(table, is_whole and inside and not is_cut)


def _size(node: fx.Node) -> int:
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    return torch.Size(map(size_hint, sizes)).numel()


def _gathered(node: fx.Node) -> list[int]:
    """The dimensions of the first input along which the node gathers by a tensor."""
    if node.target in _INDEX:
        found: list[int] = []
        dim = 0
        for index in argument(node, "indices"):
            value: Any = index.meta["val"] if index is not None else None
            width = value.dim() if value is not None and value.dtype is torch.bool else 1
            found += range(dim, dim + width) if value is not None else ()
            dim += width
        return found
    if node.target in _ALONG:
        rank = node.all_input_nodes[0].meta["val"].dim()
        return [argument(node, "dim") % rank]
    return [0] if node.target is aten.embedding.default else []
