"""What the page shows, as one JSON document: written once here, read once by ``page.js``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nmcompile.report.nodes import Node
from nmcompile.report.page.drawing import Drawing, Drawings, Kind

if TYPE_CHECKING:
    from nmcompile.report.report import GraphReport, Report
    from nmcompile.report.rows import Site

KINDS = list(Kind)


def data_of(report: Report) -> dict[str, Any]:
    """The document. Positions of a list are named where it is made; ``page.js`` has the same."""
    saved = sorted(report.saved, key=lambda s: -s.bytes)
    return {
        "totals": report.totals.model_dump(mode="json"),
        "target": None if report.target is None else report.target.model_dump(mode="json"),
        "cudaGraphs": report.cuda_graphs,
        "policy": report.policy,
        "unused": list(report.unused_rules),
        "uncompiled": list(report.uncompiled),
        "notes": [[str(note.code), note.text] for note in report.notes],
        "eager": [
            [r.target, r.module, r.calls, r.flops, r.reason.text if r.reason else ""]
            for r in report.eager
        ],
        "graphs": [_graph(g) for g in report.graphs],
        "skipped": [
            [s.target, s.path, s.backward, str(s.reason.code), s.reason.text]
            for s in report.skipped
        ],
        "saved": [[s.name, " x ".join(s.shape), s.dtype, s.bytes, s.compressed] for s in saved],
        "kernels": [[name.removesuffix(".py"), s] for name, s in report.kernel_sources().items()],
    }


def _graph(graph: GraphReport) -> dict[str, Any]:
    before, after = Drawings(graph.nodes_before), Drawings(graph.nodes_after)
    modules = list(dict.fromkeys([*after.modules, *(s.module for s in graph.sites)]))
    number = {module: i for i, module in enumerate(modules)}
    return {
        "runs": graph.runs,
        "modules": modules,
        "sites": [_site(s, number[s.module]) for s in graph.sites],
        "units": [[u.unit, str(u)] for u in graph.units],
        "before": [_node(n) for n in graph.nodes_before],
        "after": [_node(n) for n in graph.nodes_after],
        # of each module: forward before and after, backward before and after
        "drawings": [
            [
                _drawing(drawings.draw(module, backward), number)
                for backward in (False, True)
                for drawings in (before, after)
            ]
            for module in modules
        ],
    }


_COLUMNS = {
    *("site", "op", "role", "sizes", "flops", "dtype", "pruned", "format", "method", "backward"),
    *("execution", "dense_us", "sparse_us", "unit", "rule"),
}


def _site(s: Site, module: int) -> dict[str, Any]:
    row = s.model_dump(mode="json", include=_COLUMNS)
    reasons = [*s.reasons, *([s.guess] if s.guess else [])]
    return row | {"module": module, "reasons": [[str(r.code), r.text] for r in reasons]}


def _node(n: Node) -> list[Any]:
    """Name, target, shape and dtype, place in the source, inserted, sites."""
    shape = f"{' x '.join(n.shape) or 'scalar'} {n.dtype}" if n.shape is not None else ""
    return [n.label or n.name, n.target, shape, n.source, int(n.inserted), list(n.sites)]


def _drawing(drawing: Drawing, number: dict[str, int]) -> list[Any]:
    """Boxes: kind, title, detail, number of the node, number of the module, x, y; then edges."""
    boxes = []
    for b in drawing.boxes:
        module = None if b.module is None else number.get(b.module)
        boxes.append([KINDS.index(b.kind), b.title, b.detail, b.node, module, b.x, b.y])
    return [boxes, [list(edge) for edge in drawing.edges]]
