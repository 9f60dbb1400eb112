"""Operand kinds by data flow: what does a value of the graph depend on?

A value that depends on a tangent is a gradient; one that depends on parameters and buffers alone
is a weight; any other is an activation. A constant (a mask made by ``arange``) depends on nothing
and takes no side: constant times weight is still a weight. So does a size, whatever it is read of:
a weight that is expanded to as many samples as an activation has is still a weight. Where data flow
has an edge (an input that may be a gradient, a value of the backward alone), the kind is unknown: a
``Reason`` stands in its place, and what depends on it is unknown for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.aten import is_item, item_index
from nmcompile.graph.backward_values import backward_values, moves
from nmcompile.graph.gathered import is_whole_gather
from nmcompile.reason import Code, Reason

#: A value's kind; the reason why nobody knows; None for constants and sizes.
Kind = OperandKind | Reason | None
Kinds = Mapping[fx.Node, Kind]

aten = torch.ops.aten

_SIZES = (
    aten.sym_size.int,
    aten.sym_stride.int,
    aten.sym_numel.default,
    aten.sym_storage_offset.default,
)
_BACKWARD_VALUE = Reason(
    Code.BACKWARD_VALUE,
    "an operand depends on no tangent and no output of the forward depends on it: it is computed "
    "for the backward, as the gradient of a fused loss is, and may be a gradient",
)


def operand_kinds(
    graph: fx.Graph,
    kind_of_input: Callable[[fx.Node], Kind],
    is_gradient_source: Callable[[fx.Node], bool] = lambda node: False,
    kinds_of_results: Callable[[fx.Node, Kinds], Sequence[Kind] | None] = lambda node, kinds: None,
) -> Kinds:
    """The kind of every node.

    Args:
        graph: any aten-level graph.
        kind_of_input: the kind of a placeholder or ``get_attr`` node.
        is_gradient_source: nodes at which a gradient starts although no input is a tangent (a
            graph that holds the whole training step).
        kinds_of_results: of a call that runs a graph of its own, the kind of each result.
    """
    kinds: dict[fx.Node, Kind] = {}
    results: dict[fx.Node, Sequence[Kind]] = {}

    def derived(node: fx.Node) -> Kind:
        several = kinds_of_results(node, kinds)
        if several is not None:
            results[node] = several
            return strongest(several)
        if is_item(node) and node.all_input_nodes[0] in results:
            kind: Kind = results[node.all_input_nodes[0]][item_index(node)]
            return kind
        # Which matrices of a stack are taken is no part of what they hold.
        if is_whole_gather(node):
            return kinds[node.all_input_nodes[0]]
        return strongest([kinds[n] for n in node.all_input_nodes])

    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            kinds[node] = kind_of_input(node) if _holds_tensor(node) else None
        elif node.target in _SIZES:
            kinds[node] = None
        elif is_gradient_source(node):
            kinds[node] = OperandKind.GRADIENT
        else:
            kinds[node] = derived(node)
    gradients = {n for n, kind in kinds.items() if kind is OperandKind.GRADIENT}
    for node in backward_values(graph, gradients):
        kind = derived(node)
        computes = kind is OperandKind.ACTIVATION and not moves(node)
        kinds[node] = _BACKWARD_VALUE if computes else kind
    return kinds


def strongest(found: Sequence[Kind]) -> Kind:
    """The kind of a value that depends on values of these kinds."""
    if OperandKind.GRADIENT in found:
        return OperandKind.GRADIENT
    if unknown := next((kind for kind in found if isinstance(kind, Reason)), None):
        return unknown
    weaker = (OperandKind.ACTIVATION, OperandKind.WEIGHT)
    return next((kind for kind in weaker if kind in found), None)


def _holds_tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return node.op == "get_attr" or value is None or hasattr(value, "shape")
