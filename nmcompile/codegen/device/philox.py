"""Random words: Philox4x32 with 7 rounds, four words a call.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; seven
rounds are the fewest of that paper that pass BigCrush. The key is the 64-bit seed, the counter is
(low k // 4, high k // 4, stream, second), and block k takes word k % 4; second is 1 for the other
uniform of a block (approx-mvue), else 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDS: tl.constexpr = tl.constexpr(7)


@triton.jit
def _wide(a, factor: tl.constexpr):
    """The high and the low word of the 64-bit product of two uint32."""
    product = a.to(tl.uint64) * factor
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox(low, high, stream, seed, SECOND: tl.constexpr = 0):
    """The four words, uint32, of the counter (low, high, stream, SECOND); ``seed`` is int64."""
    key0 = seed.to(tl.uint64).to(tl.uint32)
    key1 = (seed.to(tl.uint64) >> 32).to(tl.uint32)
    c0, c1 = low.to(tl.uint32), high.to(tl.uint32)
    c2 = (seed * 0 + stream).to(tl.uint64).to(tl.uint32)
    c3 = (seed * 0 + SECOND).to(tl.uint64).to(tl.uint32)
    for _ in tl.static_range(7):
        high0, low0 = _wide(c0, 0xD2511F53)
        high1, low1 = _wide(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = (key0 + 0x9E3779B9).to(tl.uint32)
        key1 = (key1 + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def words_of_call(call, stream, seed):
    """The words, int32, of four consecutive blocks: 4 ``call`` and on.

    ``call`` is the low word of the counter; the high word is zero, which makes two of the
    seven rounds cheaper (``host.fit_of`` sees to it that operands are small enough).
    """
    word0, word1, word2, word3 = philox(call, seed * 0, stream, seed)
    return (
        word0.to(tl.int32, bitcast=True),
        word1.to(tl.int32, bitcast=True),
        word2.to(tl.int32, bitcast=True),
        word3.to(tl.int32, bitcast=True),
    )


@triton.jit
def word_of_block(block, stream, seed):
    """The word of each block number (int64), one call a block: for numbers in no order."""
    call = block >> 2
    word0, word1, word2, word3 = philox(call & 0xFFFFFFFF, call >> 32, stream, seed)
    even = tl.where((block & 2) == 0, word0, word2)
    odd = tl.where((block & 2) == 0, word1, word3)
    return tl.where((block & 1) == 0, even, odd).to(tl.int32, bitcast=True)


@triton.jit
def words_in_order(first, COUNT: tl.constexpr, stream, seed, SECOND: tl.constexpr):
    """The words, int32 ``[COUNT]``, of the blocks ``first`` (a multiple of 4) and on."""
    call = first // 4 + tl.arange(0, COUNT // 4)
    high = call >> 32 if call.dtype == tl.int64 else seed * 0
    word0, word1, word2, word3 = philox(call, high, stream, seed, SECOND)
    pairs = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return tl.reshape(pairs, [COUNT]).to(tl.int32, bitcast=True)
