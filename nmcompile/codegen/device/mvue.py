"""MVUE: the minimum variance unbiased estimate with N survivors, by systematic sampling.

Source: Chmiel, Hubara, Banner, Soudry, "Minimum Variance Unbiased N:M Sparsity for the Neural
Gradients", ICLR 2023, arXiv 2203.10991 (1:2), and water filling of the inclusion probabilities
(2:4): element i is kept with probability min(1, |a_i| / T), T = min(S / 2, S - max |a|), and then
has the magnitude max(|a_i|, T).

Sampling walks along the running sums c_i = M + sum min(|a_j|, T), and keeps the elements in which
t_1 = M + u T and t_2 = t_1 + T fall. Starting at the power of two M makes every sum a multiple of
one ulp of M, so that no comparison is inexact. A block whose sum is not below 2^126, NaN included,
keeps its first N elements as infinities of their sign (NaN stays): a gradient scaler sees it.
There T is infinite and M is made NaN, so that no sum is at most t and the first indices come out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.primitives import (
    above,
    add_up,
    and_or,
    at_most,
    byte_permute,
    magnitude_pair,
    multiply,
    raise16,
    round_pair,
)

# BASE + i0 * FIRST + i1 * SECOND is 2^23 + an integer, computed in float32: its low 16 bits are the
# selector 0x1010 + i0 * 0x22 + i1 * 0x2200, and its byte 2 the nibble i0 + 4 * i1.
BASE: tl.constexpr = tl.constexpr(2.0**23 + 0x1010)
FIRST: tl.constexpr = tl.constexpr(65536.0 + 0x22)
SECOND: tl.constexpr = tl.constexpr(4 * 65536.0 + 0x2200)


@triton.jit
def _threshold(total, t, N: tl.constexpr, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """T in the storage type, rounded up, as float32; infinite if the block is special."""
    if STORAGE == "bf16":
        # The bits of 2^-126 are 0x00800000: the larger of two magnitudes has the larger bits.
        bits = tl.maximum(t.to(tl.int32, bitcast=True) + 0xFFFF, 0x00800000) & -65536
        up = tl.where(total < 2.0**126, bits.to(tl.float32, bitcast=True), float("inf"))
    else:
        # Adding 2^13 times the power of two below t rounds to the last place of float16. Below
        # 2^-14 that place is 2^-24, which divides every sum; half a sum is rounded to it.
        least = tl.maximum(t, 2.0**-14) if N == 2 else t
        power = (least.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        base = power * 8192.0
        up = tl.maximum(add_up(t, base, ISA) - base, 2.0**-126)
        # Finite elements of float16 have no sum over 2^126; in 1:2 the sum is t.
        fits = t <= 65504.0
        if N == 2:
            fits = fits & (total < 2.0**126)
        up = tl.where(fits, up, float("inf"))
    return up


@triton.jit
def _floors(t0, t1, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """Two T in a word; both are numbers of the storage type."""
    if STORAGE == "bf16":
        low, high = t0.to(tl.int32, bitcast=True), t1.to(tl.int32, bitcast=True)
        word = byte_permute(low, high, 0x7632, ISA)
    else:
        word = round_pair(t0, t1, STORAGE, ISA)
    return word


@triton.jit
def _first(t, SCALE: tl.constexpr, word, ISA: tl.constexpr):
    """-M and t_1. M is SCALE times the power of two of t, and NaN when t is infinite."""
    power = (t.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    # Exact, and NaN for infinity; negative because a negated operand is free and a result is not.
    start = tl.fma(power, -1.0 - SCALE, power)
    mask: tl.constexpr = 0x7FFFFC if SCALE == 4 else 0x7FFFFE
    u = and_or(word, mask, 0x3F800000, ISA).to(tl.float32, bitcast=True) - 1.0
    return start, multiply(u, t, ISA) - start


@triton.jit
def _mask(low, high, ISA: tl.constexpr):
    """Each half of a word set where its flag is 1.0, whose byte 2 is 0x80, and clear where 0.0."""
    low, high = low.to(tl.int32, bitcast=True), high.to(tl.int32, bitcast=True)
    return byte_permute(low, high, 0xEEAA, ISA)


@triton.jit
def sample24(w01, w23, word, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """The survivors of a 2:4 block, two in a word, and their code; ``word`` is its random word.

    The indices are i0 = [c_0 <= t_1] + [c_1 <= t_1] and i1 = 1 + [c_1 <= t_2] + [c_2 <= t_2]: with
    fewer than two survivors these are the highest free ones. The value of i0 is missing when
    c_2 <= t_1, that of i1 when c_3 <= t_2 (and, if i0's is missing, c_3 <= t_1).
    """
    a0, a1 = magnitude_pair(w01, STORAGE, ISA)
    a2, a3 = magnitude_pair(w23, STORAGE, ISA)
    p01, p23 = a0 + a1, a2 + a3
    total = p01 + p23
    t = tl.minimum(tl.minimum(a0, a1) + p23, p01 + tl.minimum(a2, a3))
    t = _threshold(total, tl.minimum(total * 0.5, t), 2, STORAGE, ISA)
    start, t1 = _first(t, 4, word, ISA)
    t2 = t1 + t
    c0 = tl.minimum(a0, t) - start
    c1 = c0 + tl.minimum(a1, t)
    c2 = c1 + tl.minimum(a2, t)
    c3 = c2 + tl.minimum(a3, t)
    i0 = at_most(c0, t1, ISA) + at_most(c1, t1, ISA)
    rest = at_most(c1, t2, ISA) + at_most(c2, t2, ISA)
    code = tl.fma(i0, FIRST, tl.fma(rest, SECOND, BASE + SECOND)).to(tl.int32, bitcast=True)
    floor = _floors(t, t, STORAGE, ISA)
    values = raise16(byte_permute(w01, w23, code, ISA), floor, STORAGE, ISA)
    first = above(c2, t1, ISA)
    second = above(c3, tl.fma(first, t, t1), ISA)
    return values & _mask(first, second, ISA), code


@triton.jit
def _pair(word, random, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """T of a pair, and as floats its index and whether it is kept."""
    a0, a1 = magnitude_pair(word, STORAGE, ISA)
    total = a0 + a1
    t = _threshold(total, total, 1, STORAGE, ISA)
    start, t1 = _first(t, 2, random, ISA)
    # T is at least the sum, so that min(|a|, T) is |a|.
    c0 = a0 - start
    return t, at_most(c0, t1, ISA), above(c0 + a1, t1, ISA)


@triton.jit
def sample12(w01, w23, word0, word1, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """The survivors of two 1:2 blocks in a word, and their code, as a block of four.

    A pair without a survivor names its second element.
    """
    t0, i0, kept0 = _pair(w01, word0, STORAGE, ISA)
    t1, i1, kept1 = _pair(w23, word1, STORAGE, ISA)
    code = tl.fma(i0, FIRST, tl.fma(i1, SECOND, BASE + 2 * SECOND)).to(tl.int32, bitcast=True)
    floor = _floors(t0, t1, STORAGE, ISA)
    values = raise16(byte_permute(w01, w23, code, ISA), floor, STORAGE, ISA)
    return values & _mask(kept0, kept1, ISA), code
