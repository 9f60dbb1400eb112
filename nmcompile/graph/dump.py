"""A graph as text that a person reads."""

from __future__ import annotations

from torch import fx


def readable(graph: fx.Graph) -> str:
    """The graph as code, with shapes and our marks; nothing about the graph changes."""
    owner = graph.owning_module
    if owner is None or owner.graph is not graph:
        return graph.python_code("self", verbose=True, additional_meta=["nm"]).src.lstrip()
    return str(owner.print_readable(print_output=False, additional_meta=["nm"]))
