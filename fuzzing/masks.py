"""The deterministic masks once more, by sorting and by enumeration, independent of the package."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def keep(x: Tensor, n: int, m: int, dims: Sequence[int], groups: int = 1) -> Tensor:
    """N largest magnitudes of each block along ``dims``; the first is shared by ``groups``."""
    if groups > 1:
        first = dims[0]
        split = x.unflatten(first, (groups, -1))
        inner = [d + (d >= first) for d in dims]
        return keep(split, n, m, inner).flatten(first, first + 1)
    return _along(x.abs(), m, dims, lambda blocks: _largest(blocks, n))


def keep_ragged(x: Tensor, n: int, m: int, dim: int, offsets: Tensor) -> Tensor:
    """``keep`` of each group on its own; what is behind the last offset is one more."""
    return torch.cat([keep(part, n, m, (dim,)) for part in groups_of(x, dim, offsets)], dim)


def _largest(blocks: Tensor, n: int) -> Tensor:
    order = torch.sort(blocks, dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(blocks, dtype=torch.bool)
    return kept.scatter(-1, order.indices[..., :n], True)


def keep_tiles(x: Tensor, n: int, m: int, dims: Sequence[int], groups: int) -> Tensor:
    """N:M along both of ``dims``: the largest sum of kept magnitudes in each m x m tile."""
    if groups > 1:
        first = dims[0]
        split = x.unflatten(first, (groups, -1))
        inner = [d + (d >= first) for d in dims]
        return keep_tiles(split, n, m, inner, 1).flatten(first, first + 1)
    rows, columns = sorted(dims, key=lambda d: -x.stride(d))
    moved = x.abs().movedim((rows, columns), (-2, -1))
    height, width = moved.shape[-2:]
    padded = F.pad(moved, (0, -width % m, 0, -height % m))
    tiles = padded.unflatten(-1, (-1, m)).unflatten(-3, (-1, m)).transpose(-3, -2)
    kept = _best(tiles, n).transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return kept[..., :height, :width].movedim((-2, -1), (rows, columns))


def _best(tiles: Tensor, n: int) -> Tensor:
    patterns = _patterns(n, tiles.shape[-1])  # [patterns, m, m]
    scores = torch.einsum("...ij,pij->...p", tiles, patterns.to(tiles.dtype))
    return patterns[scores.argmax(-1)]


def groups_of(x: Tensor, dim: int, offsets: Tensor) -> list[Tensor]:
    """The parts of ``x`` along ``dim`` that end at ``offsets``, and what is behind the last."""
    ends = [*map(int, offsets), x.shape[dim]]
    return list(x.split([b - a for a, b in zip([0, *ends], ends, strict=False)], dim))


def is_pruned(x: Tensor, n: int, m: int, dims: Sequence[int]) -> bool:
    """Whether at most n of every m elements along ``dims`` are non-zero."""
    counts: list[bool] = []

    def count(blocks: Tensor) -> Tensor:
        counts.append(bool(((blocks != 0).sum(-1) <= n).all()))
        return blocks != 0

    _along(x, m, dims, count)
    return all(counts)


def _along(x: Tensor, m: int, dims: Sequence[int], function: object) -> Tensor:
    """``function`` of the zero-padded blocks ``[..., blocks, m]`` along ``dims``, put back."""
    if x.numel() == 0:
        return torch.ones_like(x, dtype=torch.bool)
    last = tuple(range(-len(dims), 0))
    moved = x.movedim(tuple(dims), last)
    flat = moved.flatten(-len(dims))
    size = flat.shape[-1]
    blocks = F.pad(flat, (0, -size % m)).unflatten(-1, (-1, m))
    kept: Tensor = function(blocks)  # type: ignore[operator]
    return kept.flatten(-2)[..., :size].reshape(moved.shape).movedim(last, tuple(dims))


def _patterns(n: int, m: int) -> Tensor:
    """Every m x m pattern with n kept in each row and column, in lexicographic order of rows."""
    rows = list(itertools.combinations(range(m), n))
    found = [
        p
        for p in itertools.product(rows, repeat=m)
        if all(sum(c in row for row in p) == n for c in range(m))
    ]
    return torch.tensor([[[c in row for c in range(m)] for row in p] for p in found])
