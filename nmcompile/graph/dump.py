"""A graph as text that a person reads."""

from __future__ import annotations

from torch import fx


def readable(graph: fx.Graph) -> str:
    """The graph as code, with shapes and our marks."""
    gm = graph.owning_module or fx.GraphModule({}, graph)
    return str(gm.print_readable(print_output=False, additional_meta=["nm"]))
