"""A gather that takes whole matrices of a stack: experts by the token that they are for.

    index(w [E, O, I], [ids [T]])                      -> [T, O, I], a weight
    view(embedding(w [E, O * I], ids [T]), [T, O, I])  -> a weight, where a product reads it
    embedding(w [V, D], ids [T])                       -> [T, D], an activation

What is gathered must not be a dimension of the product: a row for each token is data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nmcompile.graph.aten import CASTS, FLAT_VIEWS, argument, permutation

aten = torch.ops.aten

_INDEX = (aten.index.Tensor, aten._unsafe_index.Tensor)
_ALONG = (aten.index_select.default, aten.gather.default)
_ROWS = (aten.embedding.default, *_INDEX, *_ALONG)


def is_whole_gather(node: fx.Node) -> bool:
    """Whether the node gathers along dimensions before the last two of its first input."""
    dims = _gathered(node)
    return bool(dims) and max(dims) < node.all_input_nodes[0].meta["val"].dim() - 2


def gathered_rows(operand: fx.Node) -> fx.Node | None:
    """The value of whose rows each matrix of ``operand`` is one, or a part of one; else None."""
    shape = operand.meta["val"].shape
    rank = len(shape)
    node = operand
    while node.op == "call_function" and node.target not in _ROWS:
        order = permutation(node)
        last_two = order is not None and order[:-2] == tuple(range(len(order) - 2))
        if not (node.target in (*FLAT_VIEWS, *CASTS) or last_two):
            return None
        node = node.all_input_nodes[0]
    if node.op != "call_function" or rank < 3 or _gathered(node) != [0]:
        return None
    table = node.all_input_nodes[0]
    row = table.meta["val"].shape[1:].numel()
    tile = shape[-2:]
    # A vector is a row for each token; a matrix inside of one row was cut out of it.
    if not all(isinstance(size, int) for size in (row, *tile)) or 1 in tile:
        return None
    return table if row % (tile[0] * tile[1]) == 0 else None


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
