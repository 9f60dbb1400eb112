"""What a product's operand is, behind views: which operands one kernel can read for several."""

from __future__ import annotations

from typing import Any

from torch import fx

from nmcompile.graph.aten import is_matrix_transpose, is_view, view_arguments


def value_of(x: Any) -> Any:
    """What ``x`` is, so that equal views of one tensor are equal."""
    if isinstance(x, fx.Node) and is_view(x):
        (base,) = x.all_input_nodes[:1]
        return (x.target, value_of(base), repr(view_arguments(x)), repr(x.kwargs))
    return x


def through_transposes(x: fx.Node, dim: int) -> tuple[fx.Node, int]:
    """The matrix of which ``x`` is the transpose, and the dimension there; or ``x`` itself.

    Behind several transposes it is the last that lies row by row, so that a product that reads a
    weight and one that reads the transpose of its transpose read the same.
    """
    found = x, dim
    while is_matrix_transpose(x):
        x, dim = x.all_input_nodes[0], 1 - dim
        if x.meta["val"].is_contiguous() or not found[0].meta["val"].is_contiguous():
            found = x, dim
    return found
