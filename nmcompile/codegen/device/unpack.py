"""From a blob back to the operand, its mask, or another tensor at the kept places (16-bit types).

One lane handles one block of four: it reads the block's nibble where the layout put it
(``nmcompile.compressed.layouts.Layout.nibbles``), and a word of two values.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nibble_place(r, g, rows, columns, LAYOUT: tl.constexpr):
    """Byte of the metadata and its nibble, 0 or 1, of block g in row r of the padded operand."""
    if LAYOUT == "row_major":
        byte, high = r * (columns // 8) + g // 2, g % 2
    elif LAYOUT == "cusparselt_sm90":
        tile = r // 64 * (columns // 32) + g // 8
        byte = tile * 256 + r % 64 // 16 * 64 + r % 8 * 8 + g % 4 * 2 + g % 8 // 4
        high = r // 8 % 2
    else:
        word = r % 8 * 8 + r % 32 // 16 * 4 + g % 8 // 4 * 2 + r % 16 // 8
        if LAYOUT == "cutlass_sm80":
            word += g // 8 * 2 * rows + r // 32 * 64
        else:
            tile = g // 16 * (rows // 128) + r // 128
            word += tile * 512 + g % 16 // 8 * 256 + r % 128 // 32 * 64
        byte, high = 2 * word + g % 4 // 2, g % 2
    return byte, high


@triton.jit
def indices_in(byte, high):
    """The two kept indices in a byte of metadata, ``high`` or low nibble."""
    nibble = byte.to(tl.int32) >> (4 * high).to(tl.int32)
    return nibble & 3, (nibble >> 2) & 3


@triton.jit
def kept_pair(blob, r, g, rows, columns, inside, LAYOUT: tl.constexpr):
    """The two indices of a block, and its place in the values (a word for each block)."""
    metadata = blob.to(tl.pointer_type(tl.int8)) + tl.cast(rows, tl.int64) * columns
    at, high = nibble_place(r, g, rows, columns, LAYOUT)
    i0, i1 = indices_in(tl.load(metadata + at, mask=inside, other=0), high)
    return i0, i1, r * (columns // 4) + g


@triton.jit
def block_position(R, C, BLOCK: tl.constexpr):
    """Row ``[BLOCK]`` and block of this program's lanes, and which lie in ``[R, C]``."""
    groups = (C + 3) // 4
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r, g = lane // groups, lane % groups
    return r, g, r < R


@triton.jit
def store_block(out, value0, value1, value2, value3, r, g, C, inside, WHOLE: tl.constexpr):
    """Four neighbouring elements of a row-major ``[R, C]`` output, together if C % 4 == 0."""
    at = out + r * C + 4 * g
    tl.store(at, value0, mask=inside)
    tl.store(at + 1, value1, mask=inside & (WHOLE | (4 * g + 1 < C)))
    tl.store(at + 2, value2, mask=inside & (WHOLE | (4 * g + 2 < C)))
    tl.store(at + 3, value3, mask=inside & (WHOLE | (4 * g + 3 < C)))


@triton.jit
def at_index(i, i0, i1, first, second):
    """The value of element i of a block: that of its survivor, or zero."""
    return tl.where(i0 == i, first, tl.where(i1 == i, second, 0))


@triton.jit
def decompress_kernel(
    blob, out, R, C, rows, columns,
    LAYOUT: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """``out[R, C]``, row-major, from its blob, as 16-bit integers."""
    r, g, inside = block_position(R, C, BLOCK)
    i0, i1, place = kept_pair(blob, r, g, rows, columns, inside, LAYOUT)
    word = tl.load(blob.to(tl.pointer_type(tl.int32)) + place, mask=inside, other=0)
    first, second = word & 0xFFFF, (word >> 16) & 0xFFFF
    e0, e1 = at_index(0, i0, i1, first, second), at_index(1, i0, i1, first, second)
    e2, e3 = at_index(2, i0, i1, first, second), at_index(3, i0, i1, first, second)
    if WHOLE:
        low, high = (e0 | (e1 << 16)).to(tl.int64), (e2 | (e3 << 16)).to(tl.int64)
        both = (low & 0xFFFFFFFF) | (high << 32)
        tl.store(out.to(tl.pointer_type(tl.int64)) + r * (C // 4) + g, both, mask=inside)
    else:
        to = out.to(tl.pointer_type(tl.int16))
        store_block(
            to, e0.to(tl.int16), e1.to(tl.int16), e2.to(tl.int16), e3.to(tl.int16),
            r, g, C, inside, WHOLE,
        )  # fmt: skip


@triton.jit
def unpack_mask_kernel(
    blob, out, R, C, rows, columns,
    LAYOUT: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The mask ``out[R, C]``, bytes 0 and 1, row-major."""
    r, g, inside = block_position(R, C, BLOCK)
    i0, i1, _ = kept_pair(blob, r, g, rows, columns, inside, LAYOUT)
    if WHOLE:
        word = (1 << (8 * i0)) | (1 << (8 * i1))
        tl.store(out.to(tl.pointer_type(tl.int32)) + r * (C // 4) + g, word, mask=inside)
    else:
        to = out.to(tl.pointer_type(tl.int8))
        k0, k1 = ((i0 == 0) | (i1 == 0)).to(tl.int8), ((i0 == 1) | (i1 == 1)).to(tl.int8)
        k2, k3 = ((i0 == 2) | (i1 == 2)).to(tl.int8), ((i0 == 3) | (i1 == 3)).to(tl.int8)
        store_block(to, k0, k1, k2, k3, r, g, C, inside, WHOLE)


@triton.jit
def compress_like_kernel(
    x, blob, out, R, C, rows, columns,
    LAYOUT: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The values of ``out``, a copy of ``blob``, replaced by those of x at the kept places."""
    r, g, inside = block_position(R, C, BLOCK)
    i0, i1, place = kept_pair(blob, r, g, rows, columns, inside, LAYOUT)
    at = x.to(tl.pointer_type(tl.int16)) + r * C + 4 * g
    first = tl.load(at + i0, mask=inside & (WHOLE | (4 * g + i0 < C)), other=0).to(tl.int32)
    second = tl.load(at + i1, mask=inside & (WHOLE | (4 * g + i1 < C)), other=0).to(tl.int32)
    word = (first & 0xFFFF) | (second << 16)
    tl.store(out.to(tl.pointer_type(tl.int32)) + place, word, mask=inside)
