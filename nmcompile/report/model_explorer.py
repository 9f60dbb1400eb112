"""A report as a graph collection of Google's Model Explorer: the whole graphs, module by module.

The format is that of ``model_explorer/graph_builder.py`` in google-ai-edge/model-explorer, written
as plain data: the package itself is no dependency.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nmcompile.errors import NMError
from nmcompile.report.nodes import Node, parts_of

if TYPE_CHECKING:
    from nmcompile.report.report import GraphReport, Report
    from nmcompile.report.rows import Site

#: Background and border: of what the passes put there, and of products by what they run as.
_STYLES = {
    "inserted": ("#ffe3b3", "#a15c00"),
    "sparse": ("#bfe8d4", "#0b6b43"),
    "simulate": ("#cfe0fb", "#1d55b0"),
    "dense": ("#ececec", "#6b6b6b"),
}


def collection(report: Report, title: str) -> dict[str, Any]:
    """The document: of each graph what it became, then what it was.

    Raises:
        NMError: nothing of the model was compiled.
    """
    graphs = [
        _graph(graph, f"graph {number}, {when}", nodes)
        for number, graph in enumerate(report.graphs)
        for when, nodes in (("after", graph.nodes_after), ("before", graph.nodes_before))
        if nodes
    ]
    if not graphs:
        raise NMError(
            "there is no graph to export: nothing of the model was compiled "
            "(print the report, it says why)"
        )
    return {"label": title, "graphs": graphs, "graphSorting": "name_asc"}


def _graph(graph: GraphReport, name: str, nodes: Sequence[Node]) -> dict[str, Any]:
    sites = {s.site: s for s in graph.sites}
    return {
        "id": name,
        "nodes": [_node(n, graph.training, sites) for n in nodes],
        "groupNodeAttributes": _attributes_of_groups(graph),
    }


def _node(node: Node, training: bool, sites: dict[int, Site]) -> dict[str, Any]:
    own = [sites[number] for number in node.sites if number in sites]
    document: dict[str, Any] = {
        "id": node.name,
        "label": node.label or node.target,
        # what leaves the graph is of both directions
        "namespace": _namespace(node.module, node.backward, training and node.target != "output"),
        "attrs": [{"key": k, "value": v} for k, v in _attributes(node, own)],
        "incomingEdges": [
            {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(position)}
            for position, name in enumerate(node.inputs)
        ],
    }
    if node.shape is not None:
        shape = f"{node.dtype}[{','.join(node.shape)}]"
        document["outputsMetadata"] = [
            {"id": "0", "attrs": [{"key": "tensor_shape", "value": shape}]}
        ]
    kind = "inserted" if node.inserted and not own else own[0].execution if own else None
    if kind is not None:
        background, border = _STYLES[kind]
        document["style"] = {"backgroundColor": background, "borderColor": border}
    return document


def _namespace(module: str, backward: bool, training: bool) -> str:
    """Forward and backward apart, or the boxes of their layers would lead to each other."""
    direction = ["backward" if backward else "forward"] if training else []
    # A slash in a name would be a level.
    return "/".join([*direction, *(part.replace("/", "\u2215") for part in parts_of(module))])


def _attributes(node: Node, sites: Sequence[Site]) -> Iterator[tuple[str, str]]:
    yield "operator", node.target
    if node.inserted:
        yield "inserted by", "nmcompile"
    if node.module:
        yield "module", node.module
    if node.source:
        yield "source", node.source
    for s in sites:
        yield f"{s.role}", f"{s.pruned} {s.format} {s.method}" if s.pruned else "not pruned"
        yield f"{s.role} runs", s.execution
        yield f"{s.role} batch x M x N x K", " x ".join(s.sizes)
        if s.rule:
            yield f"{s.role} rule", s.rule
        if s.reason:
            yield f"{s.role} reason", s.reason
        for name, microseconds in (("dense", s.dense_us), ("sparse", s.sparse_us)):
            if microseconds is not None:
                yield f"{s.role} {name}", f"{microseconds:.1f} us"


def _attributes_of_groups(graph: GraphReport) -> dict[str, dict[str, str]]:
    """What is said of a module that is selected, and under "" of the graph."""
    counts: dict[str, list[int]] = {}
    for s in graph.sites:
        names = [""]
        for backward in (False, True):
            names += _around(_namespace(s.module, backward, graph.training))
        for name in dict.fromkeys(names):
            count = counts.setdefault(name, [0, 0])
            count[0] += s.pruned is not None
            count[1] += 1
    return {
        name: {"products": f"{pruned} of {of} pruned, all roles"}
        for name, (pruned, of) in counts.items()
    }


def _around(namespace: str) -> list[str]:
    parts = namespace.split("/") if namespace else []
    return ["/".join(parts[:k]) for k in range(1, len(parts) + 1)]
