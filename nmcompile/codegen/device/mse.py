"""MSE: the largest magnitudes of a block, without a branch and without a sort.

Each element becomes one unique 32-bit key: its magnitude above, and below it what the packing
needs to know, in an order that lets the lower index win a tie. The payload of element i is::

    byte 1: 3 - i            byte 0: 0x10 + 0x22 * i, its two byte numbers in the block

so that one byte permute of two keys is a selector for the byte permute of the values.

A *code* is the int32 that selection and sampling return beside the values: bytes 2 and 3 hold the
indices as ``3 - i0`` and ``3 - i1`` (here) or ``i0 + 4 * i1`` in byte 2 (``mvue``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.primitives import and_or, byte_permute, magnitudes16


@triton.jit
def _keys(word, FIRST: tl.constexpr, STORAGE: tl.constexpr, ISA: tl.constexpr):
    payload: tl.constexpr = ((3 - FIRST) << 8) + 0x10 + 0x22 * FIRST
    following: tl.constexpr = payload - 256 + 0x22
    bits = magnitudes16(word, STORAGE, ISA)
    return (bits << 16) | payload, and_or(bits, -65536, following, ISA)


@triton.jit
def select(w01, w23, N: tl.constexpr, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """The survivors of the block (w01, w23), two in a word, and their code.

    N is 2 for 2:4, and 1 for 1:2 (the larger of each pair).
    """
    key0, key1 = _keys(w01, 0, STORAGE, ISA)
    key2, key3 = _keys(w23, 2, STORAGE, ISA)
    left, right = tl.maximum(key0, key1), tl.maximum(key2, key3)
    code = byte_permute(left, right, 0x5140, ISA)
    if N == 2:
        # Both survivors are in one pair when its smaller element beats the other pair's larger.
        code = tl.where(tl.minimum(key0, key1) > right, 0x02033210, code)
        code = tl.where(tl.minimum(key2, key3) > left, 0x00017654, code)
    return byte_permute(w01, w23, code, ISA), code
