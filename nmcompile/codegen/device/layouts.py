"""Where the metadata of a compressed operand lies, and the sizes of its blob.

One blob of 16-bit elements: ``rows * columns / 2`` values row by row, then ``rows * columns / 8``
bytes of metadata, with ``rows`` and ``columns`` rounded up as ``compressed.layouts`` says.
Formulas and sources: the same. r is a row, c the first column of a *quad*, four blocks of four.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.primitives import byte_permute, dot_bytes


@triton.jit
def padded_rows(R, LAYOUT: tl.constexpr):
    """Rows of the blob."""
    if LAYOUT == "cusparselt_sm90":
        rows = (R + 63) // 64 * 64
    elif LAYOUT == "cusparselt_sm80":
        rows = (R + 127) // 128 * 128
    elif LAYOUT == "cutlass_sm80":
        rows = (R + 31) // 32 * 32
    else:
        rows = R
    return rows


@triton.jit
def padded_columns(C, LAYOUT: tl.constexpr, PER: tl.constexpr):
    """Columns of the blob, divided by PER."""
    by_cusparselt: tl.constexpr = LAYOUT == "cusparselt_sm80" or LAYOUT == "cusparselt_sm90"
    unit: tl.constexpr = 64 if by_cusparselt else 32
    per: tl.constexpr = unit // PER
    return (C + unit - 1) // unit * per


@triton.jit
def _two_nibbles(low, high, METHOD: tl.constexpr, ISA: tl.constexpr):
    """The nibble of the code ``low`` and 16 times that of ``high``; complemented for MSE."""
    if METHOD == "mse":
        total = dot_bytes(high, 0x40100000, dot_bytes(low, 0x04010000, 0, ISA), ISA)
    else:
        total = dot_bytes(high, 0x00100000, dot_bytes(low, 0x00010000, 0, ISA), ISA)
    return total


@triton.jit
def quad_word(upper, lower, METHOD: tl.constexpr, LAYOUT: tl.constexpr, ISA: tl.constexpr):
    """The 32 bits of metadata of a quad of the rows r (r % 16 < 8) and r + 8.

    Args:
        upper, lower: the codes of the quad's four blocks in the rows r and r + 8.

    For ``cusparselt_sm90`` byte i holds block i of r (low nibble) and of r + 8; for the others the
    low half holds the four blocks of r.
    """
    if LAYOUT == "cusparselt_sm90":
        b0 = _two_nibbles(upper[0], lower[0], METHOD, ISA)
        b1 = _two_nibbles(upper[1], lower[1], METHOD, ISA)
        b2 = _two_nibbles(upper[2], lower[2], METHOD, ISA)
        b3 = _two_nibbles(upper[3], lower[3], METHOD, ISA)
    else:
        b0 = _two_nibbles(upper[0], upper[1], METHOD, ISA)
        b1 = _two_nibbles(upper[2], upper[3], METHOD, ISA)
        b2 = _two_nibbles(lower[0], lower[1], METHOD, ISA)
        b3 = _two_nibbles(lower[2], lower[3], METHOD, ISA)
    word = (b3 * 256 + b2) * 65536 + (b1 * 256 + b0)
    if METHOD == "mse":
        word = ~word
    return word


@triton.jit
def quad_bytes(codes, METHOD: tl.constexpr, ISA: tl.constexpr):
    """The nibble of block i of a quad in byte i."""
    weights: tl.constexpr = 0x04010000 if METHOD == "mse" else 0x00010000
    b0, b1 = dot_bytes(codes[0], weights, 0, ISA), dot_bytes(codes[1], weights, 0, ISA)
    b2, b3 = dot_bytes(codes[2], weights, 0, ISA), dot_bytes(codes[3], weights, 0, ISA)
    word = (b3 * 256 + b2) * 65536 + (b1 * 256 + b0)
    if METHOD == "mse":
        word = 0x0F0F0F0F - word
    return word


@triton.jit
def merge_bytes(upper, lower, LAYOUT: tl.constexpr, ISA: tl.constexpr):
    """The result of ``quad_word`` from the ``quad_bytes`` of the rows r and r + 8."""
    if LAYOUT == "cusparselt_sm90":
        word = upper | (lower << 4)
    else:
        word = byte_permute(upper | (upper >> 4), lower | (lower >> 4), 0x6420, ISA)
    return word


@triton.jit
def store_pairs(
    metadata, even, odd, row0, k, pair, rows, columns, inside,
    LAYOUT: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Store the words (``quad_word``) of the quads 2 ``pair`` and 2 ``pair`` + 1: 32 columns.

    Args:
        metadata: pointer to the first byte of the metadata (int8).
        even, odd: the words of the two quads.
        row0, k: the words are of the rows ``row0 + k // 8 * 16 + k % 8`` and of those 8 below;
            row0 is a multiple of 64.
        pair: column // 32.
        rows, columns: of the blob.
        inside: which to store; for ``row_major`` the row + 8 is checked here.
    """
    if LAYOUT == "row_major":
        row = row0 + k // 8 * 16 + k % 8
        words = metadata.to(tl.pointer_type(tl.int32))
        at = tl.cast(row, tl.int64) * (columns // 32) + pair
        tl.store(words + at, byte_permute(even, odd, 0x5410, ISA), mask=inside)
        at += 8 * (columns // 32)
        below = inside & (row + 8 < rows)
        tl.store(words + at, byte_permute(even, odd, 0x7632, ISA), mask=below)
    else:
        if LAYOUT == "cusparselt_sm90":
            # Blocks 0, 4, 1, 5, 2, 6, 3, 7 of the 32 columns in the order of their bytes.
            low = byte_permute(even, odd, 0x5140, ISA)
            high = byte_permute(even, odd, 0x7362, ISA)
            tile = tl.cast(row0 // 64, tl.int64) * (columns // 32)
            at = (tile + (k // 32 * (columns // 32) + pair)) * 32 + k % 32
        elif LAYOUT == "cusparselt_sm80":
            low, high = even, odd
            strip = row0 // 32 + k // 16
            tile = tl.cast(pair // 2, tl.int64) * (rows // 128) + strip // 4
            at = tile * 128 + pair % 2 * 64 + strip % 4 * 16 + k % 8 * 2 + k % 16 // 8
        else:
            low, high = even, odd
            strip = row0 // 32 + k // 16
            at = tl.cast(pair, tl.int64) * (rows // 2) + strip * 16 + k % 8 * 2 + k % 16 // 8
        both = (low.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)
        tl.store(metadata.to(tl.pointer_type(tl.int64)) + at, both, mask=inside)
