"""The oracle: every mask in plain PyTorch, on any device, in the order that the kernels follow.

Blocks are the last dimension of a tensor ``[..., m]`` (transposable: tiles ``[..., m, m]``).
Arithmetic is in float32, or float64 for float64 input; sums run one element after the other, so
that a kernel which does the same agrees bit for bit. Source of the formulas: Chmiel, Hubara,
Banner, Soudry, "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients", ICLR 2023,
arXiv 2203.10991 (approx-mvue, 1:2), and water filling of the inclusion probabilities (any N:M).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nmcompile.blocks import dense_copy, layout_of

_WORD = 0xFFFFFFFF


# -- the order of the elements of a block ------------------------------------------------------


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def magnitudes(blocks: Tensor) -> Tensor:
    """``|a|`` in the compute type."""
    return blocks.abs().to(compute_dtype(blocks.dtype))


def ranks(blocks: Tensor) -> Tensor:
    """How many elements of the block come before each one, ``[..., m]`` int64.

    Larger magnitudes come first, a NaN before all others, and ties go to the lower index.
    """
    mag = magnitudes(blocks)
    rank = []
    for i in range(mag.shape[-1]):
        own, others = mag[..., i : i + 1], torch.arange(mag.shape[-1], device=mag.device)
        larger = (mag > own) | (mag.isnan() & ~own.isnan())
        equal = (mag == own) | (mag.isnan() & own.isnan())
        rank.append((larger | (equal & (others < i))).sum(-1))
    return torch.stack(rank, -1)


def _sum(terms: Tensor) -> Tensor:
    """Sum over the last dimension, one term after the other."""
    total = terms[..., 0]
    for i in range(1, terms.shape[-1]):
        total = total + terms[..., i]
    return total


def _non_finite(blocks: Tensor) -> Tensor:
    return ~blocks.isfinite().all(-1, keepdim=True)


# -- inclusion probabilities -------------------------------------------------------------------


def _round_up(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest value of ``dtype`` that is at least ``t`` (``t`` not negative), as ``t``'s."""
    if dtype in (torch.float32, torch.float64):
        return t
    nearest = t.to(dtype)
    above = (nearest.view(torch.int16) + 1).view(dtype)
    return torch.where(nearest.to(t.dtype) < t, above, nearest).to(t.dtype)


def block_threshold(blocks: Tensor, n: int) -> Tensor:
    """The T of MVUE, ``[...]``: ``min over k < n of (sum of all but the k largest |a|) / (n - k)``.

    The element a_i is kept with probability ``min(1, |a_i| / T)`` and then has the magnitude
    ``max(|a_i|, T)``. T is rounded up to the dtype of ``blocks``: a kept value is then
    representable and the estimate is unbiased in 16-bit types too. Not meaningful (and possibly
    NaN) where the block holds inf or NaN.
    """
    mag, rank = magnitudes(blocks), ranks(blocks)
    zero = torch.zeros_like(mag)
    # Divide by a tensor: some devices replace a division by a number with a multiplication.
    tails = [_sum(torch.where(rank >= k, mag, zero)) for k in range(n)]
    means = [tail / torch.full_like(tail, n - k) for k, tail in enumerate(tails)]
    return _round_up(functools.reduce(torch.minimum, means), blocks.dtype)


def _approx_parts(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S ``[..., 1]``, the sums of the others, and ``1 + sum_{j != i} |a_j| / (S - |a_j|)``."""
    mag = magnitudes(blocks)
    m = mag.shape[-1]
    rest = [[j for j in range(m) if j != i] for i in range(m)]
    others = torch.stack([_sum(mag[..., r]) for r in rest], -1)
    ratio = mag / others
    factor = torch.stack([1 + _sum(ratio[..., r]) for r in rest], -1)
    return _sum(mag)[..., None], others, factor


def inclusion_probability(blocks: Tensor, n: int, method: str = "mvue") -> Tensor:
    """The probability that each element is kept, ``[..., m]`` in the compute type.

    Args:
        blocks: ``[..., m]``.
        n: survivors per block; 2 of 4 for ``"approx-mvue"``.
        method: ``"mse"`` (0 or 1), ``"mvue"``, ``"approx-mvue"`` or ``"uniform"``.
    """
    mag, largest = magnitudes(blocks), ranks(blocks) < n
    m, one = mag.shape[-1], torch.ones_like(mag)
    if method == "mse" or n == m:
        return largest.to(mag.dtype)
    if method == "uniform":
        p, special = one * (n / m), _non_finite(blocks)
    elif method == "mvue":
        t = block_threshold(blocks, n)[..., None]
        certain = (mag >= t) & (mag > 0) & largest
        p, special = torch.where(certain, one, mag / t), _non_finite(blocks) | t.isinf()
        p = torch.where(mag > 0, p, 0.0)
    else:
        total, _, factor = _approx_parts(blocks)
        sparse = (mag > 0).sum(-1, keepdim=True) <= 2
        p = torch.where(sparse, (mag > 0).to(mag.dtype), mag / total * factor)
        special = _non_finite(blocks) | total.isinf()
    return torch.where(special, largest.to(mag.dtype), p)


# -- pruning blocks ----------------------------------------------------------------------------


def prune_blocks(
    blocks: Tensor, n: int, method: str, u: Tensor | None = None, u2: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Keep mask and pruned values of ``blocks``, both ``[..., m]``.

    Args:
        blocks: ``[..., m]``.
        n: survivors per block.
        method: ``"mse"``, ``"mvue"``, ``"approx-mvue"`` (2:4 only) or ``"uniform"``.
        u: ``[...]``, one number in [0, 1) per block, for the random methods.
        u2: ``[...]``, a second one, for ``"approx-mvue"``.

    A block that holds inf or NaN keeps its n largest as they are, whatever the method.
    """
    largest = ranks(blocks) < n
    if method == "mse" or (n == blocks.shape[-1] and method != "uniform"):
        return largest, torch.where(largest, blocks, 0)
    assert u is not None
    u = u[..., None].to(magnitudes(blocks).dtype)
    non_finite = _non_finite(blocks)
    if method == "uniform":
        keep, value = _uniform(blocks, n, u)
    elif method == "mvue":
        keep, value = _mvue(blocks, n, largest, u)
    else:
        assert u2 is not None
        keep, value = _approx_mvue(blocks, largest, u, u2[..., None].to(u.dtype))
    keep = torch.where(non_finite, largest, keep)
    return keep, torch.where(keep, torch.where(non_finite, blocks, value), 0)


def _steps(level: Tensor) -> Tensor:
    """Where ``level`` rises along the last dimension, from 0 before it."""
    return level > F.pad(level, (1, 0))[..., :-1]


def _uniform(blocks: Tensor, n: int, u: Tensor) -> tuple[Tensor, Tensor]:
    m = blocks.shape[-1]
    c = torch.arange(1, m + 1, device=u.device, dtype=u.dtype) * n / torch.full_like(u, m)
    scale = torch.full_like(u, m) / torch.full_like(u, n)
    return _steps((c + u).floor().clamp(max=n)), (blocks.to(u.dtype) * scale).to(blocks.dtype)


def _mvue(blocks: Tensor, n: int, largest: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Systematic sampling: with C the running sum of p, keep where ``floor(C + u)`` rises.

    Elements with p = 1 are left out of C (whole numbers do not change where it rises), so that
    rounding cannot lose them, and ``C >= j - u`` is compared as ``C T >= (j - u) T``: without a
    division, scaled by a power of two so that neither side overflows or underflows.
    """
    mag = magnitudes(blocks)
    t = block_threshold(blocks, n)[..., None]
    # `largest` matters for denormals alone, where the division that made T can round it down.
    certain = (mag >= t) & (mag > 0) & largest
    double = mag.dtype == torch.float64
    huge, tiny, up = (2.0**1000, 2.0**-900, 2.0**128) if double else (2.0**100, 2.0**-60, 2.0**64)
    scale = torch.ones_like(t).masked_fill(t > huge, 2.0**-32).masked_fill(t < tiny, up)
    share = torch.where(mag < t, mag * scale, 0.0)
    running = torch.stack([_sum(share[..., : i + 1]) for i in range(share.shape[-1])], -1)
    level = sum(((running >= (j - u) * (t * scale)).long() for j in range(1, n + 1)), 0 * certain)
    level = torch.minimum(level, n - certain.sum(-1, keepdim=True))
    keep = torch.where(t.isinf(), largest, certain | ((mag < t) & _steps(level)))
    raised = torch.copysign(t.to(blocks.dtype).expand_as(blocks), blocks)
    return keep, torch.where(mag < t, raised, blocks)


def _approx_mvue(blocks: Tensor, largest: Tensor, u: Tensor, u2: Tensor) -> tuple[Tensor, Tensor]:
    mag = magnitudes(blocks)
    total, others, factor = _approx_parts(blocks)

    def draw(weights: Tensor, target: Tensor) -> Tensor:
        c = torch.stack([_sum(weights[..., : i + 1]) for i in range(4)], -1)
        return (c > target) & (F.pad(c, (1, 0))[..., :-1] <= target)

    first = draw(mag, u * total)
    left = torch.where(first, others, 0.0).amax(-1, keepdim=True)
    second = draw(torch.where(first, 0.0, mag), u2 * left)
    # |a_i| / p_i without its p_i, which can underflow.
    raised = torch.copysign((total / factor).to(blocks.dtype), blocks)
    sparse = (mag > 0).sum(-1, keepdim=True) <= 2
    overflow = total.isinf() & ~sparse
    keep = torch.where(sparse, mag > 0, torch.where(overflow, largest, first | second))
    value = torch.where(overflow, torch.copysign(torch.full_like(blocks, math.inf), blocks), raised)
    return keep, torch.where(sparse, blocks, value)


# -- transposable masks ------------------------------------------------------------------------


@functools.cache
def transposable_patterns(n: int, m: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The m x m patterns with n kept in every row and column: per row, the kept columns.

    In lexicographic order; 90 of them for 2:4. Written for m = 2 and m = 4.
    """
    rows = list(itertools.combinations(range(m), n))
    patterns = itertools.product(rows, repeat=m)
    return tuple(p for p in patterns if all(sum(c in r for r in p) == n for c in range(m)))


def transposable_keep(tiles: Tensor, n: int) -> Tensor:
    """The keep mask, n:m along rows and columns, with the largest sum of kept magnitudes.

    Args:
        tiles: ``[..., m, m]`` with m = 2 or 4.
        n: survivors per row and column.

    Ties go to the first pattern of ``transposable_patterns``. inf and NaN count as larger than
    anything finite; magnitudes above 2^119 (float64: 2^1015) count as equal, so that no sum
    overflows.
    """
    m = tiles.shape[-1]
    mag = magnitudes(tiles)
    cap = 2.0**1015 if mag.dtype == torch.float64 else 2.0**119
    score = torch.where(mag.isfinite(), mag.clamp(max=cap), 16 * cap)
    patterns = transposable_patterns(n, m)
    best = torch.full_like(score[..., 0, 0], -1.0)
    choice = torch.zeros_like(best, dtype=torch.int64)
    sums = {
        (r, kept): _sum(score[..., r, kept])
        for r in range(m)
        for kept in itertools.combinations(range(m), n)
    }
    for index, pattern in enumerate(patterns):
        total = functools.reduce(torch.add, (sums[r, kept] for r, kept in enumerate(pattern)))
        choice = torch.where(total > best, index, choice)
        best = torch.maximum(best, total)
    table = [[[c in kept for c in range(m)] for kept in p] for p in patterns]
    masks = torch.tensor(table, device=tiles.device)
    return masks.index_select(0, choice.flatten()).view(tiles.shape)


# -- random numbers ----------------------------------------------------------------------------


def philox_uniforms(seed: Tensor, stream: int, count: int, second: bool = False) -> Tensor:
    """The numbers of the blocks 0..count-1: ``[count]`` float32 in [0, 1), multiples of 2^-24.

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); the key
    is the 64-bit ``seed``, the counter words are (low, high, stream, second). Block k takes word
    ``k // 16 % 4`` of counter ``k // 64 * 16 + k % 16``: 16 lanes draw for 64 blocks at a time.
    """
    k = torch.arange(count, device=seed.device)
    counter = k // 64 * 16 + k % 16
    c = [counter & _WORD, counter >> 32, torch.full_like(k, stream & _WORD)]
    c.append(torch.full_like(k, int(second)))
    seed = seed.reshape(())
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # int64 products wrap, which leaves all 64 bits of the unsigned product in place.
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [((p1 >> 32) & _WORD) ^ c[1] ^ key0, p1 & _WORD,
             ((p0 >> 32) & _WORD) ^ c[3] ^ key1, p0 & _WORD]  # fmt: skip
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    word = torch.stack(c).gather(0, (k // 16 % 4)[None])[0]
    return (word >> 8).to(torch.float32) * 2.0**-24


# -- whole tensors -----------------------------------------------------------------------------


def to_blocks(x: Tensor, dims: Sequence[int], m: int) -> Tensor:
    """The blocks of ``x`` along ``dims``, zero-padded: ``[outer, blocks, inner, m]``.

    Flattened over all but the last dimension they are in the order of their numbers
    (``nmcompile.blocks``).
    """
    dense = dense_copy(x)
    view = layout_of(dense, dims, m).view(dense)
    view = F.pad(view, (0, 0, 0, -view.shape[1] % m))
    blocks: Tensor = view.unflatten(1, (-1, m)).movedim(2, -1)
    return blocks


def from_blocks(blocks: Tensor, like: Tensor, dims: Sequence[int]) -> Tensor:
    """The inverse of ``to_blocks``: a tensor with the shape and strides of ``empty_like(like)``."""
    out = torch.empty_like(like, dtype=blocks.dtype)
    layout = layout_of(out, dims, blocks.shape[-1])
    layout.write(blocks.movedim(-1, 2).flatten(1, 2)[:, : layout.size], out)
    return out


def _prune_tiles(x: Tensor, n: int, m: int, dims: Sequence[int]) -> Tensor:
    dense = dense_copy(x)
    layout = layout_of(dense, dims, m, tiles=True)
    view = layout.view(dense)
    view = F.pad(view, (0, -layout.inner % m, 0, -layout.size % m))
    tiles = view.unflatten(2, (-1, m)).unflatten(1, (-1, m)).transpose(2, 3)
    keep = transposable_keep(tiles, n).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    out = torch.empty_like(x, dtype=torch.bool)
    layout.write(keep[:, : layout.size, : layout.inner], out)
    return out


def prune_and_mask(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> tuple[Tensor, Tensor]:
    """What ``nm::prune`` and ``nm::keep_mask`` return, both with the strides of ``empty_like(x)``.

    Args: as of the operators (``nmcompile.ops``).
    """
    if x.numel() == 0:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    if method == "transposable":
        keep = _prune_tiles(x, n, m, dims)
        return torch.empty_like(x).copy_(torch.where(keep, x, 0)), keep
    blocks = to_blocks(x, dims, m)
    u = u2 = None
    if method in ("mvue", "approx-mvue", "uniform"):
        assert seed is not None
        shape, count = blocks.shape[:-1], blocks[..., 0].numel()
        u = philox_uniforms(seed, stream, count).view(shape)
        if method == "approx-mvue":
            u2 = philox_uniforms(seed, stream, count, second=True).view(shape)
    keep, values = prune_blocks(blocks, n, method, u, u2)
    return from_blocks(values, x, dims), from_blocks(keep, x, dims)
