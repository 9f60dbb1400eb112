"""Every method of choosing the survivors of a block or tile, for any N:M, on bits.

An element is its bits, int32 (``blocks``), of the type STORAGE: "fp32", "bf16" or "fp16". A method
takes the elements of a block, a tuple of tensors ``[LANES]``, and returns two such tuples: which
are kept, and the bits of what each becomes if it is. Arithmetic is in float32 and in the order of
``nmcompile.masks.reference``, where the formulas and their sources stand: the results are its, bit
for bit. All loops are unrolled.

``mse`` and ``mvue`` do the same for packed 16-bit 2:4 operands with fewer instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.primitives import and_or, low_float, multiply, round16

INFINITY: tl.constexpr = tl.constexpr(0x7F800000)
#: Magnitudes from here on count as equal in a transposable mask, so that no sum overflows.
CAP: tl.constexpr = tl.constexpr(2.0**119)


# -- elements ------------------------------------------------------------------------------------


@triton.jit
def to_float(bits, STORAGE: tl.constexpr):
    """The element as float32."""
    return bits.to(tl.float32, bitcast=True) if STORAGE == "fp32" else low_float(bits, STORAGE)


@triton.jit
def from_float(value, STORAGE: tl.constexpr):
    """The bits of a float32, rounded to nearest even."""
    return value.to(tl.int32, bitcast=True) if STORAGE == "fp32" else round16(value, STORAGE)


@triton.jit
def magnitudes(block, M: tl.constexpr, STORAGE: tl.constexpr):
    """The bits of the magnitudes as float32: in the order of the magnitudes, NaN on top."""
    found = ()
    for i in tl.static_range(M):
        bits = to_float(block[i], STORAGE).to(tl.int32, bitcast=True)
        found += (bits & 0x7FFFFFFF,)
    return found


@triton.jit
def as_floats(words, COUNT: tl.constexpr):
    """Bits as float32."""
    found = ()
    for i in tl.static_range(COUNT):
        found += (words[i].to(tl.float32, bitcast=True),)
    return found


@triton.jit
def with_sign(magnitude, element, STORAGE: tl.constexpr):
    """The bits of a magnitude with the sign of an element."""
    sign: tl.constexpr = -0x80000000 if STORAGE == "fp32" else 0x8000
    return magnitude | (element & sign)


@triton.jit
def infinity(STORAGE: tl.constexpr):
    """Its bits."""
    bits: tl.constexpr = (
        0x7F800000 if STORAGE == "fp32" else (0x7F80 if STORAGE == "bf16" else 0x7C00)
    )
    return bits


@triton.jit
def uniform_of(word, DROPPED: tl.constexpr, ISA: tl.constexpr):
    """A random word as a number in [0, 1), a multiple of 2^(DROPPED - 23)."""
    mask: tl.constexpr = 0x7FFFFF & ~((1 << DROPPED) - 1)
    return and_or(word, mask, 0x3F800000, ISA).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def divided(a, by: tl.constexpr):
    """``a / by``, correctly rounded; ``by`` is a whole number."""
    return (
        a * (1.0 / by) if (by & (by - 1)) == 0 else tl.div_rn(a, tl.full(a.shape, by, tl.float32))
    )


# -- sums and order ------------------------------------------------------------------------------


@triton.jit
def sum_of_pairs(terms, COUNT: tl.constexpr):
    """Neighbours added: half as many terms."""
    sums = ()
    for i in tl.static_range(COUNT // 2):
        sums += (terms[2 * i] + terms[2 * i + 1],)
    if COUNT % 2 == 1:
        sums += (terms[COUNT - 1],)
    return sums


@triton.jit
def tree_sum(terms, COUNT: tl.constexpr):
    """The sum, neighbours first."""
    for level in tl.static_range(5):
        if (COUNT + (1 << level) - 1) >> level > 1:
            terms = sum_of_pairs(terms, (COUNT + (1 << level) - 1) >> level)
    return terms[0]


@triton.jit
def sum_without(terms, LEFT: tl.constexpr, COUNT: tl.constexpr):
    """``tree_sum`` with zero for the term LEFT."""
    sums = ()
    for i in tl.static_range(COUNT // 2):
        if 2 * i == LEFT:
            sums += (terms[2 * i + 1],)
        elif 2 * i + 1 == LEFT:
            sums += (terms[2 * i],)
        else:
            sums += (terms[2 * i] + terms[2 * i + 1],)
    if COUNT % 2 == 1:
        sums += (tl.zeros_like(terms[0]) if LEFT == COUNT - 1 else terms[COUNT - 1],)
    return tree_sum(sums, (COUNT + 1) // 2)


@triton.jit
def ranks(bits, M: tl.constexpr):
    """How many elements come before each: larger ones, NaN above all, ties to the lower index."""
    keys = ()
    for i in tl.static_range(M):
        keys += (tl.minimum(bits[i], INFINITY + 1),)
    found = ()
    for i in tl.static_range(M):
        rank = keys[i] * 0 + (M - 1 - i)
        for j in tl.static_range(M):
            if j < i:
                rank += (keys[j] >= keys[i]).to(tl.int32)
            elif j > i:
                rank -= (keys[i] >= keys[j]).to(tl.int32)
        found += (rank,)
    return found


@triton.jit
def any_non_finite(bits, M: tl.constexpr):
    """Whether the block holds inf or NaN."""
    most = bits[0]
    for i in tl.static_range(1, M):
        most = tl.maximum(most, bits[i])
    return most >= INFINITY


# -- methods -------------------------------------------------------------------------------------


@triton.jit
def largest(block, N: tl.constexpr, M: tl.constexpr, STORAGE: tl.constexpr):
    """MSE: the N largest magnitudes, as they are."""
    keep = ()
    rank = ranks(magnitudes(block, M, STORAGE), M)
    for i in tl.static_range(M):
        keep += (rank[i] < N,)
    return keep, block


@triton.jit
def every(block, M: tl.constexpr):
    """All elements as they are: N is M."""
    keep = ()
    for i in tl.static_range(M):
        keep += (block[i] == block[i],)
    return keep, block


@triton.jit
def scaled_uniform(
    block, word, N: tl.constexpr, M: tl.constexpr, STORAGE: tl.constexpr, ISA: tl.constexpr
):
    """Each with probability N / M, times M / N."""
    bits = magnitudes(block, M, STORAGE)
    order, special = ranks(bits, M), any_non_finite(bits, M)
    u = uniform_of(word, 0, ISA)
    before, keep, values = u * 0.0, (), ()
    for i in tl.static_range(M):
        level = tl.minimum(tl.floor(u + ((i + 1) * N / M)), N)
        keep += (tl.where(special, order[i] < N, level > before),)
        scaled = from_float(to_float(block[i], STORAGE) * (M / N), STORAGE)
        values += (tl.where(special, block[i], scaled),)
        before = level
    return keep, values


@triton.jit
def threshold(a, order, N: tl.constexpr, M: tl.constexpr):
    """T of MVUE, before it is rounded: the least mean of all but the k largest, k < N.

    ``order`` are the ranks, which N = 1 and N = 2 do without.
    """
    t = divided(tree_sum(a, M), N)
    if N > 1:
        least = sum_without(a, 0, M)
        for i in tl.static_range(1, M):
            least = tl.minimum(least, sum_without(a, i, M))
        t = tl.minimum(t, divided(least, N - 1))
    for removed in tl.static_range(2, N):
        tail = ()
        for i in tl.static_range(M):
            tail += (tl.where(order[i] >= removed, a[i], 0.0),)
        t = tl.minimum(t, divided(tree_sum(tail, M), N - removed))
    return t


@triton.jit
def rounded_up(t, STORAGE: tl.constexpr):
    """The smallest value of the storage type that is at least ``t``, as float32."""
    if STORAGE == "bf16":
        up = ((t.to(tl.int32, bitcast=True) + 0xFFFF) & -65536).to(tl.float32, bitcast=True)
    elif STORAGE == "fp16":
        bits = round16(t, STORAGE)
        up = low_float(tl.where(low_float(bits, STORAGE) < t, bits + 1, bits), STORAGE)
    else:
        up = t
    return up


@triton.jit
def variance_least(
    block, word, N: tl.constexpr, M: tl.constexpr, STORAGE: tl.constexpr, ISA: tl.constexpr
):
    """MVUE: systematic sampling with probabilities min(1, |a| / T).

    ``level`` walks up the running sums from one number of u, 1 + u, ... (times T) to the next: no
    element is longer than T, so that none has two of them.
    """
    spare: tl.constexpr = 1 if N == 1 else (2 if N == 2 else (3 if N <= 4 else (
        4 if N <= 8 else (5 if N <= 16 else 6))))  # fmt: skip
    most: tl.constexpr = 65504.0 if STORAGE == "fp16" else (2.0**128 - 2.0**120 if STORAGE == "bf16"
                                                           else 2.0**128 - 2.0**104)  # fmt: skip
    bits = magnitudes(block, M, STORAGE)
    a = as_floats(bits, M)
    order = ranks(bits, M) if N > 2 else bits
    t = tl.maximum(rounded_up(threshold(a, order, N, M), STORAGE), 2.0**-126)
    special = ((tree_sum(a, M) < 2.0**126) & (t <= most)) == 0
    t = tl.where(special, 1.0, t)
    start = ((t.to(tl.int32, bitcast=True) >> 23) + spare) << 23
    start = start.to(tl.float32, bitcast=True)
    share = (t + start) - start
    level = start + multiply(uniform_of(word, spare, ISA), share, ISA)
    last = level + (N - 1) * share
    floor = from_float(t, STORAGE)
    after, keep, values = start, (), ()
    for i in tl.static_range(M):
        below = a[i] < t
        after += tl.where(below, a[i], share)
        crossed = (level < after) & (level <= last)
        level = tl.where(crossed, level + share, level)
        value = tl.where(below, with_sign(floor, block[i], STORAGE), block[i])
        infinite = with_sign(infinity(STORAGE), block[i], STORAGE)
        infinite = tl.where(bits[i] > INFINITY, block[i], infinite)
        keep += (tl.where(special, i < N, crossed),)
        values += (tl.where(special, infinite, value),)
    return keep, values


@triton.jit
def drawn(weights, target):
    """Which of four weights the running sum passes ``target`` in."""
    found, total, before = (), weights[0] * 0.0, target >= 0.0
    for i in tl.static_range(4):
        total += weights[i]
        found += (before & (total > target),)
        before = total <= target
    return found


@triton.jit
def sum_of_others(a, i: tl.constexpr):
    """The other three of four, in their order."""
    if i == 0:
        total = (a[1] + a[2]) + a[3]
    elif i == 1:
        total = (a[0] + a[2]) + a[3]
    elif i == 2:
        total = (a[0] + a[1]) + a[3]
    else:
        total = (a[0] + a[1]) + a[2]
    return total


@triton.jit
def variance_approximate(block, word, second_word, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """approx-MVUE 2:4: one by its magnitude, then another by its own."""
    bits = magnitudes(block, 4, STORAGE)
    order, special, a = ranks(bits, 4), any_non_finite(bits, 4), as_floats(bits, 4)
    total = tree_sum(a, 4)
    others, ratio, count = (), (), order[0] * 0
    for i in tl.static_range(4):
        others += (sum_of_others(a, i),)
        ratio += (tl.div_rn(a[i], others[i]),)
        count += (a[i] > 0.0).to(tl.int32)
    sparse = count <= 2
    one = drawn(a, uniform_of(word, 0, ISA) * total)
    left, rest = total * 0.0, ()
    for i in tl.static_range(4):
        left = tl.where(one[i], others[i], left)
        rest += (tl.where(one[i], 0.0, a[i]),)
    two = drawn(rest, uniform_of(second_word, 0, ISA) * left)
    too_large = (total == float("inf")) & (count > 2)
    keep, values = (), ()
    for i in tl.static_range(4):
        raised = from_float(tl.div_rn(total, 1.0 + sum_of_others(ratio, i)), STORAGE)
        raised = tl.where(too_large, infinity(STORAGE), raised & 0x7FFFFFFF)
        value = with_sign(raised, block[i], STORAGE)
        few = tl.where(sparse, a[i] > 0.0, one[i] | two[i])
        keep += (tl.where(special | too_large, order[i] < 2, few),)
        values += (tl.where(special | sparse, block[i], value),)
    return keep, values


@triton.jit
def survivors_of_block(
    block, word, second_word,
    METHOD: tl.constexpr, N: tl.constexpr, M: tl.constexpr, STORAGE: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    """Which elements of a block are kept, and the bits of what each becomes."""
    if METHOD == "uniform":
        keep, values = scaled_uniform(block, word, N, M, STORAGE, ISA)
    elif N == M:
        keep, values = every(block, M)
    elif METHOD == "mse":
        keep, values = largest(block, N, M, STORAGE)
    elif METHOD == "mvue":
        keep, values = variance_least(block, word, N, M, STORAGE, ISA)
    else:
        keep, values = variance_approximate(block, word, second_word, STORAGE, ISA)
    return keep, values


@triton.jit
def best_pattern(
    tile, KEPT: tl.constexpr, COUNT: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    STORAGE: tl.constexpr,
):  # fmt: skip
    """That of COUNT patterns that keeps the largest sum of magnitudes, the first of equals.

    ``tile`` are the M * M elements, row by row; KEPT numbers those that the patterns keep, pattern
    by pattern. They are added row by row, then the rows. Bit k of the result is of element k.

    All in one function: a call for each pattern would take Triton's front end seconds. What the
    sums have in common is found later.
    """
    bits, scores = magnitudes(tile, M * M, STORAGE), ()
    for i in tl.static_range(M * M):
        score = tl.minimum(bits[i].to(tl.float32, bitcast=True), CAP)
        scores += (tl.where(bits[i] >= INFINITY, 16.0 * CAP, score),)
    best, chosen = scores[0], bits[0] * 0
    for k in tl.static_range(COUNT):
        total, pattern = scores[0], 0
        for row in tl.static_range(k * M * N, (k + 1) * M * N, N):
            kept = scores[KEPT[row]]
            pattern |= 1 << KEPT[row]
            for i in tl.static_range(row + 1, row + N):
                kept += scores[KEPT[i]]
                pattern |= 1 << KEPT[i]
            total = total + kept if row % (M * N) else kept
        if k:
            chosen = tl.where(total > best, pattern, chosen)
            best = tl.maximum(best, total)
        else:
            chosen, best = chosen | pattern, total
    return chosen
