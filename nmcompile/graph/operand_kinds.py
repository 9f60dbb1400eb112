"""Operand kinds by data flow: what does a value of the graph depend on?

A value that depends on a tangent is a gradient; one that depends on parameters and buffers alone
is a weight; any other is an activation. A constant (a mask made by ``arange``) depends on nothing
and takes no side: constant times weight is still a weight. Where data flow has an edge (an input
that may be a gradient, a value of the backward alone), the kind is unknown: a ``Reason`` stands in
its place, and what depends on it is unknown for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.backward_values import backward_values, moves
from nmcompile.graph.gathered import is_whole_gather
from nmcompile.reason import Code, Reason

#: A value's kind; the reason why nobody knows; None for constants and sizes.
Kind = OperandKind | Reason | None
Kinds = Mapping[fx.Node, Kind]

_BACKWARD_VALUE = Reason(
    Code.BACKWARD_VALUE,
    "an operand depends on no tangent and no output of the forward depends on it: it is computed "
    "for the backward, as the gradient of a fused loss is, and may be a gradient",
)


def operand_kinds(
    graph: fx.Graph,
    kind_of_input: Callable[[fx.Node], Kind],
    is_gradient_source: Callable[[fx.Node], bool] = lambda node: False,
) -> Kinds:
    """The kind of every node.

    Args:
        graph: any aten-level graph.
        kind_of_input: the kind of a placeholder or ``get_attr`` node.
        is_gradient_source: nodes at which a gradient starts although no input is a tangent (a
            graph that holds the whole training step).
    """
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            kinds[node] = kind_of_input(node) if _holds_tensor(node) else None
        elif is_gradient_source(node):
            kinds[node] = OperandKind.GRADIENT
        else:
            kinds[node] = _strongest(node, kinds)
    gradients = {n for n, kind in kinds.items() if kind is OperandKind.GRADIENT}
    for node in backward_values(graph, gradients):
        kind = _strongest(node, kinds)
        computes = kind is OperandKind.ACTIVATION and not moves(node)
        kinds[node] = _BACKWARD_VALUE if computes else kind
    return kinds


def _strongest(node: fx.Node, kinds: Kinds) -> Kind:
    """A value is of the strongest kind among those that it depends on."""
    if is_whole_gather(node):  # which matrices of a stack are taken is no part of what they hold
        return kinds[node.all_input_nodes[0]]
    found = [kinds[n] for n in node.all_input_nodes]
    if OperandKind.GRADIENT in found:
        return OperandKind.GRADIENT
    if unknown := next((kind for kind in found if isinstance(kind, Reason)), None):
        return unknown
    weaker = (OperandKind.ACTIVATION, OperandKind.WEIGHT)
    return next((kind for kind in weaker if kind in found), None)


def _holds_tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return node.op == "get_attr" or value is None or hasattr(value, "shape")
