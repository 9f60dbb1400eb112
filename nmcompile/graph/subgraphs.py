"""Graphs inside of graphs: the bodies of higher-order operators.

    joint graph      y = invoke_subgraph(fw, x, w);  dx, dw = invoke_subgraph(bw, x, w, dy)
    fw, bw           graphs of their own, whose inputs are plain placeholders

Inductor runs its joint passes on each of them, and on some twice: a region's forward and backward
are one graph first, and come back as two after the partitioner.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import fx

from nmcompile.reason import Code, Reason

OUTSIDE_UNKNOWN = Reason(
    Code.IN_SUBGRAPH,
    "inside of a higher-order operator nothing says where an operand comes from: it may be a "
    "gradient",
)

_PLANNED = "nm_planned"


def subgraphs(node: fx.Node) -> list[fx.GraphModule]:
    """The graphs that a higher-order operator is given."""
    gm = node.graph.owning_module
    held = [_at(gm, n) for n in node.all_input_nodes if gm is not None and n.op == "get_attr"]
    return [graph for graph in held if isinstance(graph, fx.GraphModule)]


def mark_planned(graph: fx.Graph) -> None:
    """Remember in its nodes, which the partitioner copies, that a graph has been planned."""
    for node in graph.nodes:
        node.meta[_PLANNED] = True


def is_planned(graph: fx.Graph) -> bool:
    """Whether all that the graph computes comes from graphs that have been planned."""
    return all(n.meta.get(_PLANNED) for n in graph.nodes if n.op == "call_function")


def is_unused(around: Sequence[fx.GraphModule]) -> bool:
    """Whether the last of these graphs, each inside of the one before, is never called there."""
    for outer, inner in itertools.pairwise(around):
        held = [n for n in outer.graph.find_nodes(op="get_attr") if _at(outer, n) is inner]
        if held and not any(node.users for node in held):
            return True
    return False


def _at(gm: fx.GraphModule, node: fx.Node) -> object:
    return getattr(gm, str(node.target), None)
