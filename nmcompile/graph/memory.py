"""Which values of a graph Inductor writes to memory, and who reads them there.

Inductor computes elementwise producers inside of the kernels that read them. A value is in memory
only where something needs it there: a library call or a kernel of its own reads it, or the graph
returns it. This is a model of what Inductor decides later, good enough to count bytes
(``python -m benchmarks.bytes_moved`` holds it against Inductor's own count).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.gemm import size_hint
from nmcompile.graph.aten import (
    CONSTANTS,
    CONVERSIONS,
    OPERANDS,
    Convolution,
    ConvolutionBackward,
    is_view,
)

aten = torch.ops.aten

#: Inlined as elementwise operators are, without being tagged so.
_UNTAGGED = (
    *CONSTANTS,
    *CONVERSIONS,
    aten.cat.default,
    aten.constant_pad_nd.default,
    aten.embedding.default,
    aten.gather.default,
    aten.index.Tensor,
    aten.select.int,
    aten.slice.Tensor,
)
_PRODUCTS = (*OPERANDS, Convolution.operator, ConvolutionBackward.operator)


def is_inlined(node: fx.Node) -> bool:
    """Whether Inductor may compute the node inside of its readers."""
    target: Any = node.target
    if not isinstance(target, _torch.OpOverload):
        return False
    if target in _UNTAGGED or is_view(node):
        return True
    return torch.Tag.pointwise in target.tags and not _torch.is_fallback(target)


def reads_inside(node: fx.Node) -> bool:
    """Whether the node reads its inputs in a kernel of Inductor's, which may compute them."""
    target: Any = node.target
    if not isinstance(target, _torch.OpOverload) or target in _PRODUCTS:
        return False
    return target.namespace in ("aten", "prims") and not _torch.is_fallback(target)


def readers(node: fx.Node) -> list[fx.Node]:
    """Who reads the value, as it is or through views; views themselves are none."""
    found: list[fx.Node] = []
    for user in node.users:
        found += readers(user) if is_view(user) else [user]
    return found


def bytes_of(node: fx.Node) -> int:
    """Bytes of the value; none where it is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0
    return int(size_hint(value.numel()) * value.element_size())


class Memory:
    """The values of a graph that are in memory whatever the nodes ``apart`` read."""

    def __init__(self, apart: Iterable[fx.Node]) -> None:
        self.apart = set(apart)
        self._held: dict[fx.Node, bool] = {}

    def holds(self, node: fx.Node) -> bool:
        """Whether the value is in memory."""
        if node not in self._held:
            held = not is_inlined(node)
            self._held[node] = held or any(self._needs(user) for user in readers(node))
        return self._held[node]

    def _needs(self, reader: fx.Node) -> bool:
        return reader not in self.apart and not reads_inside(reader)
