"""Packed operands as inputs of a prologue: the operand, or its keep mask, four pieces a fragment.

The blocks of a packed ``[R, C]`` input are the groups of four columns of a fragment: a lane reads
one nibble and, for the operand, one word of two values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.layouts import padded_columns, padded_rows
from nmcompile.codegen.device.tiles import to_pieces, valid
from nmcompile.codegen.device.unpack import at_index, indices_in, nibble_place


@triton.jit
def _load(ptr, at, R, C, FIT: tl.constexpr):
    """One number a block from pointers ``[T, G]``, zero where the block is outside."""
    if FIT == "full":
        x = tl.load(ptr)
    elif FIT == "aligned":
        x = tl.load(ptr, mask=valid(at, R, C), other=0)
    else:
        x = tl.load(ptr, mask=(at[0] + at[1] < R) & (4 * (at[2] + at[3]) < C), other=0)
    return x


@triton.jit
def _indices(blob, at, R, C, LAYOUT: tl.constexpr, FIT: tl.constexpr):
    """The two kept indices of each block."""
    r, g = at[0] + at[1], at[2] + at[3]
    if FIT == "ragged":
        r, g = r.to(tl.int64), g.to(tl.int64)
    rows, columns = padded_rows(R, LAYOUT), padded_columns(C, LAYOUT, 1)
    metadata = blob.to(tl.pointer_type(tl.int8)) + tl.cast(rows, tl.int64) * columns
    byte, high = nibble_place(r, g, rows, columns, LAYOUT)
    return indices_in(_load(metadata + byte, at, R, C, FIT), high)


@triton.jit
def load_packed(blob, at, R, C, LAYOUT: tl.constexpr, FIT: tl.constexpr):
    """Four float32 pieces ``[T, G]`` of a packed operand, zero where nothing was kept."""
    i0, i1 = _indices(blob, at, R, C, LAYOUT, FIT)
    per_row = padded_columns(C, LAYOUT, 4)
    origin = blob.to(tl.pointer_type(tl.int32)) + at[0].to(tl.int64) * per_row + at[2]
    if FIT == "ragged":
        word = _load(origin + (at[1].to(tl.int64) * per_row + at[3]), at, R, C, FIT)
    else:
        word = _load(origin + (at[1] * per_row + at[3]), at, R, C, FIT)
    if blob.dtype.element_ty == tl.bfloat16:
        first, second, _, _ = to_pieces((word, word), "bf16")
    else:
        first, second, _, _ = to_pieces((word, word), "fp16")
    return (
        at_index(0, i0, i1, first, second),
        at_index(1, i0, i1, first, second),
        at_index(2, i0, i1, first, second),
        at_index(3, i0, i1, first, second),
    )


@triton.jit
def _is_kept(i, i0, i1):
    return tl.where((i0 == i) | (i1 == i), 1.0, 0.0)


@triton.jit
def load_kept(blob, at, R, C, LAYOUT: tl.constexpr, FIT: tl.constexpr):
    """Four pieces, 0.0 and 1.0, of the keep mask of a packed operand."""
    i0, i1 = _indices(blob, at, R, C, LAYOUT, FIT)
    return _is_kept(0, i0, i1), _is_kept(1, i0, i1), _is_kept(2, i0, i1), _is_kept(3, i0, i1)
