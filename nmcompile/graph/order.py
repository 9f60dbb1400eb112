"""How the values of a graph lie over an operand ``[R, C]``, by their order in memory.

A value ``[B, T, C]``, or ``[N, C, H, W]`` channels-last, has the elements of an operand ``[R, C]``
in the operand's order. Smaller values are broadcast: one number a row, one a column, one for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nmcompile.codegen.kernel_spec import Shape
from nmcompile.gemm import size_hint
from nmcompile.graph.aten import FLAT_VIEWS, TRANSPOSES

aten = torch.ops.aten

#: Views that keep the order in memory, whatever it is.
_SAME_MEMORY = (*TRANSPOSES, aten.unsqueeze.default, aten.squeeze.dim, aten.alias.default)


@dataclass(frozen=True)
class Order:
    """An operand's sizes; they may be symbolic."""

    rows: Any
    columns: Any

    def is_of_size(self, value: torch.Tensor) -> bool:
        """Whether the value has as many elements as the operand."""
        return _same(value.numel(), self.rows * self.columns)

    def is_whole(self, node: fx.Node) -> bool:
        """Whether the value has the operand's elements in memory without gaps."""
        return self.by_size(node) == ("full",)

    def has_shape(self, node: fx.Node) -> bool:
        """Whether the value is ``[R, C]``."""
        sizes = node.meta["val"].shape
        return len(sizes) == 2 and _same(sizes[0], self.rows) and _same(sizes[1], self.columns)

    def is_broadcast(self, node: fx.Node) -> bool:
        """Whether the node expands a smaller value over the operand."""
        return is_expanded(node) and self.lies(node.all_input_nodes[0], node) not in (None, "full")

    def by_size(self, node: fx.Node) -> tuple[Shape, ...]:
        """How the value may lie over the operand; nothing where no kernel reads it."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype == torch.float64:
            return ()
        if not (value.is_floating_point() or value.dtype == torch.bool) or not is_dense(value):
            return ()
        if value.numel() == 1:
            return ("scalar",)
        if self.is_of_size(value):
            return ("full",)
        sizes: tuple[tuple[Shape, Any], ...] = (
            ("per_column", self.columns),
            ("per_row", self.rows),
        )
        return tuple(shape for shape, size in sizes if _same(value.numel(), size))

    def lies(self, node: fx.Node, reader: fx.Node) -> Shape | None:
        """How the value lies over the operand, of which ``reader`` has every element."""
        if is_same_memory(reader):
            return "full" if self.is_whole(node) else None
        if is_expanded(node):
            contiguous = reader.meta["val"].is_contiguous()
            return "full" if contiguous and self.is_broadcast(node) else None
        return next((s for s in self.by_size(node) if self._lies_as(s, node, reader)), None)

    def _lies_as(self, shape: Shape, node: fx.Node, reader: fx.Node) -> bool:
        """Whether an elementwise ``reader`` broadcasts the value over the operand in this way."""
        if shape == "scalar":
            return True
        value, like = node.meta["val"], reader.meta["val"]
        missing = [1] * (like.dim() - value.dim())
        sizes, strides = (missing + list(x) for x in (value.shape, value.stride()))
        inner, laid = self._inner(reader), self._strides(reader)
        factor = self.columns if shape == "per_row" else 1
        for d, size in enumerate(sizes):
            broadcast = shape != "full" and (d in inner) != (shape == "per_column")
            wanted = 1 if broadcast else like.shape[d]
            if not _same(size, wanted):
                return False
            if not _same(wanted, 1) and not _same(strides[d] * factor, laid[d]):
                return False
        return True

    def _inner(self, reader: fx.Node) -> set[int]:
        """The dimensions of a whole value that are the operand's columns."""
        sizes, strides = reader.meta["val"].shape, self._strides(reader)
        found, size = set(), 1
        for d in sorted(range(len(sizes)), key=lambda d: size_hint(strides[d])):
            if _same(size, self.columns):
                break
            found.add(d)
            size = size * sizes[d]
        return found if _same(size, self.columns) else set()

    def _strides(self, node: fx.Node) -> Sequence[Any]:
        """Of a whole value; those of an expanded one are what its elements would have in memory."""
        value = node.meta["val"]
        if not is_expanded(node):
            return tuple(value.stride())
        strides: list[Any] = [1]
        for size in reversed(value.shape[1:]):
            strides.insert(0, strides[0] * size)
        return strides


def is_expanded(node: fx.Node) -> bool:
    """Whether the node is a value that is expanded to a larger one."""
    return node.target is aten.expand.default


def is_same_memory(node: fx.Node) -> bool:
    """Whether the node is a view under which the elements keep their order in memory."""
    if node.target in FLAT_VIEWS:
        both = (node, node.all_input_nodes[0])
        return all(n.meta["val"].is_contiguous() for n in both)
    return node.target in _SAME_MEMORY


def is_dense(value: torch.Tensor) -> bool:
    """Whether the elements lie without gaps, in whatever order of the dimensions."""
    if value.is_contiguous():
        return True
    return bool(value.permute(memory_order(value)).is_contiguous())


def memory_order(value: torch.Tensor) -> list[int]:
    """The dimensions from the one that runs slowest in memory to the one that runs fastest."""
    return sorted(range(value.dim()), key=lambda d: -size_hint(value.stride(d)))


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal, without a guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return str(a) == str(b)
