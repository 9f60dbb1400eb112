"""The oracle: every mask in plain PyTorch, on any device, in the order that the kernels follow.

Blocks are the last dimension of a tensor ``[..., m]`` (transposable: tiles ``[..., m, m]``).
Arithmetic is in float32, or float64 for float64 input, in an order that is written down here, so
that a kernel which follows it agrees bit for bit. Source of the formulas: Chmiel, Hubara,
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

from nmcompile.masks.blocks import dense_copy, layout_of

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
    """Sum over the last dimension, neighbours first: ``(a0 + a1) + (a2 + a3)`` for four."""
    level = list(terms.unbind(-1))
    while len(level) > 1:
        pairs = [a + b for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(level) // 2 * 2 :]
    return level[0]


def _running_sum(terms: Tensor, start: Tensor | None = None) -> Tensor:
    """Sums of the first 1, 2, ... terms, one term after the other, from ``start`` ``[...]``."""
    total, sums = start, []
    for term in terms.unbind(-1):
        total = term if total is None else total + term
        sums.append(total)
    return torch.stack(sums, -1)


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
    representable and the estimate is unbiased in 16-bit types too. It is at least the smallest
    normal number of the compute type. Not meaningful (and possibly NaN) where ``is_special``.
    """
    mag, m = magnitudes(blocks), blocks.shape[-1]
    total, zero = _sum(mag), torch.zeros_like(mag)
    # Divide by a tensor: some devices replace a division by a number with a multiplication.
    means = [total / torch.full_like(total, n)]
    if n > 1:
        # All but the largest: the smallest of the sums without one element.
        without_one = [_sum(torch.where(torch.arange(m, device=mag.device) == i, zero, mag))
                       for i in range(m)]  # fmt: skip
        means.append(functools.reduce(torch.minimum, without_one) / torch.full_like(total, n - 1))
    for k in range(2, n):
        tail = _sum(torch.where(ranks(blocks) >= k, mag, zero))
        means.append(tail / torch.full_like(tail, n - k))
    threshold = _round_up(functools.reduce(torch.minimum, means), blocks.dtype)
    return threshold.clamp(min=torch.finfo(threshold.dtype).tiny)


def is_special(blocks: Tensor, n: int) -> Tensor:
    """Blocks that MVUE cannot sample, ``[...]``: inf, NaN, or sums and T that would overflow."""
    total = _sum(magnitudes(blocks))
    limit = 2.0**1022 if total.dtype == torch.float64 else 2.0**126
    return ~(total < limit) | (block_threshold(blocks, n) > torch.finfo(blocks.dtype).max)


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
        p = (mag / block_threshold(blocks, n)[..., None]).clamp(max=1)
        first = torch.arange(m, device=mag.device) < n
        return torch.where(is_special(blocks, n)[..., None], first.to(mag.dtype), p)
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

    A block that holds inf or NaN keeps its n largest as they are; with ``"mvue"`` its first n
    elements, as inf (of their sign) or NaN, and so does one whose sum or T would overflow.
    """
    largest = ranks(blocks) < n
    if method == "mse" or (n == blocks.shape[-1] and method != "uniform"):
        return largest, torch.where(largest, blocks, 0)
    assert u is not None
    u = u[..., None].to(magnitudes(blocks).dtype)
    if method == "mvue":
        return _mvue(blocks, n, u)
    non_finite = _non_finite(blocks)
    if method == "uniform":
        keep, value = _uniform(blocks, n, u)
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


def _mvue(blocks: Tensor, n: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """Systematic sampling: with C the running sum of p, keep where one of u, 1 + u, ... is crossed.

    All is multiplied by T, and the sums start at a power of two M with ``n T <= M``: they are then
    whole numbers of one unit, the last place of M, and exact. An element with p = 1 is so kept for
    certain, no element is counted twice, and nothing divides. The price is a resolution of
    2^-22 T (for 2:4 in float32) in the probabilities; u is cut to the same resolution.
    """
    mag = magnitudes(blocks)
    special = is_special(blocks, n)[..., None]
    t = block_threshold(blocks, n)[..., None].masked_fill(special, 1.0)
    whole, fraction = (torch.int64, 52) if mag.dtype == torch.float64 else (torch.int32, 23)
    exponent = t.view(whole) >> fraction
    spare = 1 + (n - 1).bit_length()
    start = ((exponent + spare) << fraction).view(t.dtype)  # M
    share = (t + start) - start
    steps = 2.0 ** (fraction - spare)
    level = start + (u * steps).floor() / steps * share
    after = _running_sum(torch.where(mag < t, mag, share), start[..., 0])
    before = torch.cat([start, after[..., :-1]], -1)
    keep = torch.zeros_like(mag, dtype=torch.bool)
    for _ in range(n):
        keep |= (before <= level) & (level < after)
        level = level + share
    value = torch.where(mag < t, torch.copysign(t.to(blocks.dtype), blocks), blocks)
    first = torch.arange(blocks.shape[-1], device=blocks.device) < n
    infinite = torch.copysign(torch.full_like(blocks, math.inf), blocks)
    keep = torch.where(special, first, keep)
    value = torch.where(special, torch.where(blocks.isnan(), blocks, infinite), value)
    return keep, torch.where(keep, value, 0)


def _approx_mvue(blocks: Tensor, largest: Tensor, u: Tensor, u2: Tensor) -> tuple[Tensor, Tensor]:
    mag = magnitudes(blocks)
    total, others, factor = _approx_parts(blocks)

    def draw(weights: Tensor, target: Tensor) -> Tensor:
        c = _running_sum(weights)
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
    """The numbers of the blocks 0..count-1: ``[count]`` float32 in [0, 1), multiples of 2^-23.

    Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: seven
    rounds pass BigCrush); the key is the 64-bit ``seed``, the counter words are (low, high,
    stream, second). Block k takes word ``k % 4`` of counter ``k // 4``, and of that word the low
    23 bits, which are the mantissa of a number in [1, 2).
    """
    counter = torch.arange((count + 3) // 4, device=seed.device)
    c = [counter & _WORD, counter >> 32, torch.full_like(counter, stream & _WORD)]
    c.append(torch.full_like(counter, int(second)))
    seed = seed.reshape(())
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(7):
        # int64 products wrap, which leaves all 64 bits of the unsigned product in place.
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [((p1 >> 32) & _WORD) ^ c[1] ^ key0, p1 & _WORD,
             ((p0 >> 32) & _WORD) ^ c[3] ^ key1, p0 & _WORD]  # fmt: skip
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    word = torch.stack(c, -1).flatten()[:count]
    return (word & 0x7FFFFF).to(torch.float32) * 2.0**-23


# -- whole tensors -----------------------------------------------------------------------------


def to_blocks(x: Tensor, dims: Sequence[int], m: int) -> Tensor:
    """The blocks of ``x`` along ``dims``, zero-padded: ``[outer, blocks, inner, m]``.

    Flattened over all but the last dimension they are in the order of their numbers
    (``nmcompile.masks.blocks``).
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
