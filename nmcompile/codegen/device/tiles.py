"""Tiles of operands: where a program works, loads, broadcasts, rounding and dense stores.

A program owns ROWS x COLUMNS elements of x. It works on fragments of four consecutive columns:
a *fragment* is a tensor ``[T, G]`` per column, T rows and G groups of four columns, as a tuple of
four float32 tensors (``pieces``) or, rounded to the storage type, of two words (``w01, w23``).
A position is a tuple ``(row0, rows, group0, groups, again)``: the origin of the program, the local
rows ``[T, 1]`` and groups of four columns ``[1, G]``, and whether the program has been at these
elements before (``both``), so that a dense result is there already.

FIT says what may be assumed, once for all two-dimensional inputs (``host.fit_of``):

    "ragged"    nothing: 16-bit inputs are read an element at a time
    "aligned"   C % 16 == 0, row strides % 8 == 0, pointers to a multiple of 16 bytes, and places
                inside of a tile are 32-bit numbers
    "full"      also that every program's tile is whole and inside of the operand: no masks
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.primitives import (
    high_float,
    load_four,
    low_float,
    round_pair,
)


@triton.jit
def valid(at, R, C):
    """Which elements ``[T, G]`` of a fragment lie in the operand (C a multiple of 4)."""
    row0, rows, group0, groups, _ = at
    return (row0 + rows < R) & (group0 + groups < C // 4)


@triton.jit
def _load_column(ptr, stride, at, R, C, i: tl.constexpr):
    row0, rows, group0, groups, _ = at
    column = 4 * (group0 + groups) + i
    row = (row0 + rows).to(tl.int64)
    return tl.load(ptr + row * stride + column, mask=(row < R) & (column < C), other=0)


@triton.jit
def load_words(ptr, stride, at, R, C, FIT: tl.constexpr):
    """The words of a 16-bit operand as they are, zero outside it."""
    if FIT == "ragged":
        bits = ptr.to(tl.pointer_type(tl.int16))
        a0 = _load_column(bits, stride, at, R, C, 0).to(tl.int32) & 0xFFFF
        a1 = _load_column(bits, stride, at, R, C, 1).to(tl.int32) << 16
        a2 = _load_column(bits, stride, at, R, C, 2).to(tl.int32) & 0xFFFF
        a3 = _load_column(bits, stride, at, R, C, 3).to(tl.int32) << 16
        words = a0 | a1, a2 | a3
    else:
        both = _load_groups(ptr, stride, at, R, C, tl.int64, FIT)
        words = both.to(tl.int32), (both >> 32).to(tl.int32)
    return words


@triton.jit
def _load_groups(ptr, stride, at, R, C, GROUP: tl.constexpr, FIT: tl.constexpr):
    """Groups of four columns as numbers ``[T, G]`` of their size, zero outside of the operand."""
    row0, rows, group0, groups, _ = at
    origin = (ptr + row0.to(tl.int64) * stride + group0 * 4).to(tl.pointer_type(GROUP))
    origin += rows * (stride // 4) + groups
    return tl.load(origin) if FIT == "full" else tl.load(origin, valid(at, R, C), other=0)


@triton.jit
def _load_wide(ptr, stride, at, R, C, FIT: tl.constexpr, ISA: tl.constexpr):
    """Four pieces of a float32 operand, zero outside of it."""
    row0, rows, group0, groups, _ = at
    base = ptr + row0.to(tl.int64) * stride + group0 * 4
    offset = rows * (stride // 4) + groups
    if FIT == "full":
        pieces = load_four(base, offset, ISA)
    else:
        # The first element of the program's tile is always there.
        inside = valid(at, R, C)
        x = load_four(base, tl.where(inside, offset, 0), ISA)
        pieces = (
            tl.where(inside, x[0], 0.0),
            tl.where(inside, x[1], 0.0),
            tl.where(inside, x[2], 0.0),
            tl.where(inside, x[3], 0.0),
        )
    return pieces


@triton.jit
def _flag(word, BIT: tl.constexpr):
    return tl.where((word & BIT) != 0, 1.0, 0.0)


@triton.jit
def _load_flags(ptr, stride, at, R, C, FIT: tl.constexpr):
    """Four pieces, 0.0 and 1.0, of a boolean operand, zero outside of it."""
    word = _load_groups(ptr, stride, at, R, C, tl.int32, FIT)
    return _flag(word, 1), _flag(word, 1 << 8), _flag(word, 1 << 16), _flag(word, 1 << 24)


@triton.jit
def to_pieces(words, STORAGE: tl.constexpr):
    """Words as four float32 pieces."""
    w01, w23 = words
    return (
        low_float(w01, STORAGE),
        high_float(w01, STORAGE),
        low_float(w23, STORAGE),
        high_float(w23, STORAGE),
    )


@triton.jit
def load(ptr, stride, at, R, C, FIT: tl.constexpr, ISA: tl.constexpr):
    """Four float32 pieces ``[T, G]`` of a ``[R, C]`` input of any type, zero outside it.

    Unless FIT is ragged, 16-bit and float32 inputs are read 16 bytes at a time, boolean ones
    eight; others an element at a time.
    """
    if ptr.dtype.element_ty == tl.bfloat16:
        pieces = to_pieces(load_words(ptr, stride, at, R, C, FIT), "bf16")
    elif ptr.dtype.element_ty == tl.float16:
        pieces = to_pieces(load_words(ptr, stride, at, R, C, FIT), "fp16")
    elif ptr.dtype.element_ty == tl.float32 and FIT != "ragged":
        pieces = _load_wide(ptr, stride, at, R, C, FIT, ISA)
    elif ptr.dtype.element_ty == tl.int1 and FIT != "ragged":
        pieces = _load_flags(ptr, stride, at, R, C, FIT)
    else:
        pieces = (
            _load_column(ptr, stride, at, R, C, 0).to(tl.float32),
            _load_column(ptr, stride, at, R, C, 1).to(tl.float32),
            _load_column(ptr, stride, at, R, C, 2).to(tl.float32),
            _load_column(ptr, stride, at, R, C, 3).to(tl.float32),
        )
    return pieces


@triton.jit
def load_per_column(ptr, at, C, FIT: tl.constexpr, ISA: tl.constexpr):
    """Four float32 pieces ``[1, G]`` of an input ``[C]`` that is broadcast over the rows."""
    row0, _, group0, groups, again = at
    row = (row0 * 0, groups * 0, group0, groups, again)
    return load(ptr, 0, row, 1, C, FIT, ISA)


@triton.jit
def load_per_row(ptr, stride, at, R):
    """One float32 piece ``[T, 1]`` of an input with one number a row, ``ptr[row * stride]``."""
    row = (at[0] + at[1]).to(tl.int64)
    return _as_float(tl.load(ptr + row * stride, mask=row < R, other=0))


@triton.jit
def load_scalar(ptr):
    """One float32 number."""
    return _as_float(tl.load(ptr))


@triton.jit
def _as_float(value):
    return value.to(tl.float32)


@triton.jit
def round_words(pieces, at, R, C, STORAGE: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr):
    """The words of four float32 pieces, rounded to the storage type; zero outside the operand.

    Pieces that are ``[1, G]`` or ``[T, 1]`` are broadcast.
    """
    row0, rows, group0, groups, _ = at
    w01 = round_pair(pieces[0], pieces[1], STORAGE, ISA)
    w23 = round_pair(pieces[2], pieces[3], STORAGE, ISA)
    if FIT == "aligned":
        inside = valid(at, R, C)
        w01, w23 = tl.where(inside, w01, 0), tl.where(inside, w23, 0)
    elif FIT == "ragged":
        left = C - 4 * (group0 + groups)
        row = row0 + rows < R
        w01 = tl.where(row & (left > 0), tl.where(left > 1, w01, w01 & 0xFFFF), 0)
        w23 = tl.where(row & (left > 2), tl.where(left > 3, w23, w23 & 0xFFFF), 0)
    return w01, w23


@triton.jit
def store_dense(ptr, stride, words, at, R, C, FIT: tl.constexpr):
    """Store words as elements of a dense ``[R, C]`` output of the storage type.

    The output must be memory of its own: ``both`` reads the inputs twice.
    """
    w01, w23 = words
    row0, rows, group0, groups, again = at
    if again:
        pass
    elif FIT == "ragged":
        row = (row0 + rows).to(tl.int64)
        at0 = ptr.to(tl.pointer_type(tl.int16)) + row * stride + 4 * (group0 + groups)
        left = C - 4 * (group0 + groups)
        inside = row < R
        tl.store(at0, w01.to(tl.int16), mask=inside & (left > 0))
        tl.store(at0 + 1, (w01 >> 16).to(tl.int16), mask=inside & (left > 1))
        tl.store(at0 + 2, w23.to(tl.int16), mask=inside & (left > 2))
        tl.store(at0 + 3, (w23 >> 16).to(tl.int16), mask=inside & (left > 3))
    else:
        both = (w01.to(tl.int64) & 0xFFFFFFFF) | (w23.to(tl.int64) << 32)
        origin = (ptr + row0.to(tl.int64) * stride + group0 * 4).to(tl.pointer_type(tl.int64))
        to = origin + rows * (stride // 4) + groups
        if FIT == "full":
            tl.store(to, both)
        else:
            tl.store(to, both, mask=valid(at, R, C))
