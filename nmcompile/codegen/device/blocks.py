"""Where the blocks and tiles of any tensor lie, and how a program loads and stores them.

A *line* is M elements that belong together: a block, or one row of a tile. A program loads LANES
lines as M tensors ``[LANES]`` of bits, int32: those of a float32, or the 16 bits of a smaller type.
They come from ``operand(inputs, at, inside, ISA)``, which the kernel prints: the bits of elements
at the offsets ``at`` of what is pruned, as they lie in memory or computed from ``inputs``.

Dimensions that are flattened into one index come as ``(sizes, strides)``, the last one fastest;
all strides are in elements. Offsets are int32 where the program's first element is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.primitives import round_pair


@triton.jit
def offset(index, sizes, strides):
    """Where the element with the number ``index`` lies."""
    at = index * 0
    for k in tl.static_range(len(sizes) - 1):
        at += index % sizes[len(sizes) - 1 - k] * strides[len(sizes) - 1 - k]
        index = index // sizes[len(sizes) - 1 - k]
    return at + index * strides[0]


@triton.jit
def as_bits(ptr, BYTES: tl.constexpr):
    """The pointer to integers of BYTES bytes that is ``ptr``."""
    if BYTES == 4:
        bits = ptr.to(tl.pointer_type(tl.int32))
    elif BYTES == 2:
        bits = ptr.to(tl.pointer_type(tl.int16))
    else:
        bits = ptr.to(tl.pointer_type(tl.int8))
    return bits


@triton.jit
def unstack(x, COUNT: tl.constexpr):
    """``[L * COUNT]`` to COUNT tensors ``[L]``; COUNT is a power of two."""
    parts = (x,)
    for level in tl.static_range(5):
        if COUNT >> level > 1:
            evens = ()
            odds = ()
            for k in tl.static_range(1 << level):
                even, odd = tl.split(tl.reshape(parts[k], [parts[k].shape[0] // 2, 2]))
                evens += (even,)
                odds += (odd,)
            parts = evens + odds
    return parts


@triton.jit
def stack(parts, COUNT: tl.constexpr):
    """The inverse of ``unstack``."""
    for level in tl.static_range(5):
        if COUNT >> level > 1:
            joined = ()
            for k in tl.static_range(COUNT >> level + 1):
                both = tl.join(parts[k], parts[k + (COUNT >> level + 1)])
                joined += (tl.reshape(both, [2 * parts[k].shape[0]]),)
            parts = joined
    return parts[0]


@triton.jit
def first_lane(LANES: tl.constexpr, WIDE: tl.constexpr):
    """The number of this program's first line."""
    first = tl.program_id(0) * LANES
    if WIDE:
        first = tl.program_id(0).to(tl.int64) * LANES
    return first


@triton.jit
def places_in_runs(first, size, M: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
                   SINGLE: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """Rows, columns and masks ``[LANES * PADDED]`` of lines that lie along rows of ``size``.

    A line is padded to PADDED elements, a power of two. SINGLE: there is one row. WHOLE: no padding
    at all, so that columns follow each other from line to line.
    """
    element = first * PADDED + tl.arange(0, LANES * PADDED)
    if WHOLE:
        row = element * 0 if SINGLE else element // size
        column = element if SINGLE else element % size
        inside = column < size
    else:
        per_row = (size + M - 1) // M
        line, i = element // PADDED, element % PADDED
        row = line * 0 if SINGLE else line // per_row
        column = (line if SINGLE else line % per_row) * M + i
        inside = (column < size) & (i < M)
    return row, column, inside


@triton.jit
def load_bits(ptr, at, inside):
    """The bits of elements as they are, zero outside."""
    return tl.load(ptr + at, mask=inside, other=0).to(tl.int32)


@triton.jit
def load_float(ptr, at, inside):
    """Elements of any type in float32, zero outside."""
    if ptr.dtype.element_ty == tl.bfloat16:  # by its bits, for the interpreter
        value = (load_bits(as_bits(ptr, 2), at, inside) << 16).to(tl.float32, bitcast=True)
    else:
        value = tl.load(ptr + at, mask=inside, other=0).to(tl.float32)
    return value


@triton.jit
def float_bits(value, inside, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """The bits of float32 numbers, rounded to the storage type; zero outside."""
    if STORAGE == "fp32":
        bits = value.to(tl.int32, bitcast=True)
    else:
        bits = round_pair(value, value, STORAGE, ISA).to(tl.int16).to(tl.int32)
    return tl.where(inside, bits, 0)


@triton.jit
def load_run(operand, inputs, at, inside, PADDED: tl.constexpr, ISA: tl.constexpr):
    """PADDED tensors ``[LANES]`` from offsets ``[LANES * PADDED]``, zero outside."""
    return unstack(operand(inputs, at, inside, ISA), PADDED)


@triton.jit
def store_run(ptr, at, inside, parts, M: tl.constexpr, PADDED: tl.constexpr):
    """The inverse of ``load_run``, of M tensors."""
    for _ in tl.static_range(PADDED - M):
        parts += (parts[0],)
    tl.store(ptr + at, stack(parts, PADDED).to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_across(operand, inputs, at, row, size, count, sizes, strides, M: tl.constexpr,
                ISA: tl.constexpr):  # fmt: skip
    """M tensors ``[LANES]``: the elements ``row`` and on along ``sizes``, zero from ``size`` on.

    Args:
        at: offsets ``[LANES]`` of the lines in the other dimensions.
        count: which lanes are lines.
    """
    parts = ()
    for i in tl.static_range(M):
        to = at + offset(row + i, sizes, strides)
        parts += (operand(inputs, to, count & (row + i < size), ISA),)
    return parts


@triton.jit
def store_across(ptr, at, row, size, count, sizes, strides, parts, M: tl.constexpr):
    """The inverse of ``load_across``."""
    for i in tl.static_range(M):
        to = ptr + (at + offset(row + i, sizes, strides))
        tl.store(to, parts[i].to(ptr.dtype.element_ty), mask=count & (row + i < size))
