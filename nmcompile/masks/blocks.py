"""Where the blocks of a tensor lie in memory: one view and one numbering for every mask kernel.

A mask kernel sees contiguous memory as ``[outer, size, inner]``: blocks of ``m`` elements run
along ``size`` (the last one padded with zeros when m does not divide it) and block ``b`` of row
``(o, i)`` has the number ``k = (o * blocks + b) * inner + i``, which selects its random numbers.
Transposable masks see ``[outer, rows, columns]`` and m x m tiles over the last two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How the memory of a dense tensor becomes ``[outer, size, inner]``.

    Attributes:
        perm: the order of the dimensions in that view.
        outer, size, inner: its sizes.
        direct: whether it is the memory as it lies; otherwise a permuted copy is needed.
    """

    perm: tuple[int, ...]
    outer: int
    size: int
    inner: int
    direct: bool

    def view(self, dense: Tensor) -> Tensor:
        """``dense`` as contiguous ``[outer, size, inner]``; a copy unless ``direct``."""
        permuted = dense.permute(self.perm)
        return permuted.reshape(self.outer, self.size, self.inner).contiguous()

    def write(self, result: Tensor, out: Tensor) -> None:
        """Copy ``result``, ``[outer, size, inner]``, back into the dense tensor ``out``."""
        permuted = out.permute(self.perm)
        permuted.copy_(result.reshape(permuted.shape))


def dense_copy(x: Tensor) -> Tensor:
    """``x``, or a copy with the strides of ``torch.empty_like(x)`` when it has gaps or overlaps."""
    like = torch.empty_like(x, device="meta")
    return x if like.stride() == x.stride() else torch.empty_like(x).copy_(x)


def by_channel_group(
    x: Tensor, dims: Sequence[int], shared: int, groups: int, m: int
) -> tuple[Tensor, tuple[int, ...]]:
    """A view of ``x`` in which no block of ``m`` crosses two channel groups, and its dimensions.

    Args:
        x: any tensor.
        dims: what blocks run along.
        shared: the dimension that the groups share.
        groups: their number; they get a dimension of their own where a block would cross two.
    """
    if groups == 1 or x.shape[shared] // groups % m == 0:
        return x, tuple(dims)
    return x.unflatten(shared, (groups, -1)), tuple(d + (d >= shared) for d in dims)


def layout_of(dense: Tensor, dims: Sequence[int], m: int, tiles: bool = False) -> BlockLayout:
    """The layout of a dense tensor whose blocks (or tiles) run along ``dims``.

    Args:
        dense: a tensor without gaps or overlaps, at least one element.
        dims: the reduction dimensions, flattened in this order; negative numbers count from the
            end. For ``tiles`` the dimensions of a tile's rows and columns: in this order, patterns
            of equal score are told apart.
        m: the block length.
        tiles: whether m x m tiles are wanted (transposable masks).
    """
    positive = tuple(d % dense.dim() for d in dims)
    return layout_of_strides(tuple(dense.shape), dense.stride(), positive, m, tiles)


@functools.lru_cache(maxsize=4096)
def layout_of_strides(
    shape: tuple[int, ...], stride: tuple[int, ...], dims: tuple[int, ...], m: int, tiles: bool
) -> BlockLayout:
    """``layout_of`` a tensor of this shape and these strides; no dimension is negative."""
    unit = tuple(d for d in range(len(shape)) if shape[d] == 1)
    order = tuple(sorted((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: -stride[d]))
    if tiles:
        rows, columns = dims
        others = tuple(d for d in (*unit, *order) if d not in dims)
        outer = math.prod(shape) // (shape[rows] * shape[columns])
        inner_two = tuple(d for d in (rows, columns) if shape[d] > 1)
        direct = order[len(order) - len(inner_two) :] == inner_two
        return BlockLayout((*others, rows, columns), outer, shape[rows], shape[columns], direct)
    reduced = tuple(d for d in dims if shape[d] > 1)
    if not reduced:
        return BlockLayout(unit + order, 1, 1, math.prod(shape), True)
    for first in range(len(reduced)):
        # When m divides the size of the trailing dimensions, no block crosses the leading ones.
        run = reduced[first:]
        size = math.prod(shape[d] for d in run)
        at = order.index(run[0])
        if order[at : at + len(run)] == run and (first == 0 or size % m == 0):
            outer = math.prod(shape[d] for d in order[:at])
            inner = math.prod(shape[d] for d in order[at + len(run) :])
            return BlockLayout(unit + order, outer, size, inner, True)
    size = math.prod(shape[d] for d in reduced)
    others = tuple(d for d in order if d not in reduced)
    return BlockLayout(unit + others + reduced, math.prod(shape) // size, size, 1, False)
