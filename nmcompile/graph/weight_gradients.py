"""What becomes the gradient of a parameter through views, casts and sums alone.

A product among them is a weight gradient whatever its forward looked like: Inductor may have
written that without a product, or a custom Function may have multiplied in an operator of its own.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.gemm import OperandKind
from nmcompile.graph.aten import CONVERSIONS, VIEWS
from nmcompile.graph.operand_kinds import Kinds

aten = torch.ops.aten

#: Linear in one input, and each element of the result a sum of elements of it: also the gradients
#: of a gather, and of a weight that is a part or a join of parameters.
_SUMS = frozenset(
    [
        *VIEWS,
        *CONVERSIONS,
        aten.add.Tensor,
        aten.sum.default,
        aten.sum.dim_IntList,
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


def weight_gradients(graph: fx.Graph, kinds: Kinds) -> set[fx.Node]:
    """The nodes of an AOTAutograd graph that are summed into the gradient of a weight."""
    weights = {
        _torch.input_origin(node)
        for node in graph.nodes
        if node.op == "placeholder" and kinds[node] is OperandKind.WEIGHT
    }
    outputs = _torch.outputs_of(graph)
    stack = [n for n, what, origin in outputs if what == "gradient" and origin in weights]
    found: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        if node.target in _SUMS or getattr(node.target, "namespace", None) == _COLLECTIVE:
            stack.extend(node.all_input_nodes)
    return found
