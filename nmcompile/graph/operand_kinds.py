"""Operand kinds by data flow: what does a value of the graph depend on?

A value that depends on a tangent is a gradient; one that depends on parameters and buffers alone
is a weight; any other is an activation. A constant (a mask made by ``arange``) depends on nothing
and takes no side: constant times weight is still a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from nmcompile.gemm import OperandKind

#: Strongest first: a value is of the strongest kind among those that it depends on.
_STRENGTH = (OperandKind.GRADIENT, OperandKind.ACTIVATION, OperandKind.WEIGHT)

Kinds = Mapping[fx.Node, OperandKind | None]


def operand_kinds(
    graph: fx.Graph,
    kind_of_input: Callable[[fx.Node], OperandKind | None],
    is_gradient_source: Callable[[fx.Node], bool] = lambda node: False,
) -> Kinds:
    """The kind of every node; None for constants and sizes.

    Args:
        graph: any aten-level graph.
        kind_of_input: the kind of a placeholder or ``get_attr`` node.
        is_gradient_source: nodes at which a gradient starts although no input is a tangent (a
            graph that holds the whole training step).
    """
    kinds: dict[fx.Node, OperandKind | None] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            kinds[node] = kind_of_input(node) if _holds_tensor(node) else None
        elif is_gradient_source(node):
            kinds[node] = OperandKind.GRADIENT
        else:
            found = {kinds[n] for n in node.all_input_nodes}
            kinds[node] = next((k for k in _STRENGTH if k in found), None)
    return kinds


def _holds_tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return node.op == "get_attr" or value is None or hasattr(value, "shape")
