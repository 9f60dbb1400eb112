"""Blocks along the rows of x: the blob of its transpose, ``[C, R]``.

A program holds its tile as 16 fragments, the rows 16 s + i of all strips s of 16 rows, so that a
thread has four blocks of each of its columns: 16 bytes of the values of one row of the blob, which
are stored without any exchange between threads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.layouts import (
    merge_bytes,
    padded_columns,
    padded_rows,
    quad_bytes,
    store_pairs,
)
from nmcompile.codegen.device.philox import word_of_block, words_of_call
from nmcompile.codegen.device.primitives import byte_permute, zero_like
from nmcompile.codegen.device.rows import first_row, pack_block, shifted


@triton.jit
def strip_position(
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AGAIN: tl.constexpr, OPERANDS: tl.constexpr
):
    """Position of the first fragment: rows r with r % 16 == 0."""
    rows = 16 * tl.arange(0, ROWS // 16)[:, None]
    groups = tl.arange(0, COLUMNS // 4)[None, :]
    column_tile = tl.program_id(0) // OPERANDS
    return first_row(ROWS), rows, column_tile * (COLUMNS // 4), groups, AGAIN


@triton.jit
def _stack(x0, x1, x2, x3):
    """Four ``[S, G]`` to one ``[S, G, 4]``."""
    pairs = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(pairs, [x0.shape[0], x0.shape[1], 4])


@triton.jit
def _unstack(x):
    """``[K, 4]`` to four ``[K]``."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _load_strips(OPERAND: tl.constexpr, inputs, at, R, C, FIT: tl.constexpr, ISA: tl.constexpr):
    """The 16 fragments of a tile, as a tuple of words: the rows i of all strips."""
    fragments = ()
    for i in tl.static_range(16):
        fragments += (OPERAND(shifted(at, i), inputs, R, C, FIT, ISA),)
    return fragments


@triton.jit
def _even_odd(x0, x1, x2, x3):
    """The words ``[S, G]`` of four blocks of each strip to those of the even and of the odd groups,
    ``[K, 4]`` with K = S * G / 2.

    In two dimensions there is one order of threads that stores 16 bytes at a time, and it is the
    one that the loads gave, so that nothing goes through shared memory. In three, versions of
    Triton differ in which of the first two the threads walk along first.
    """
    x = _stack(x0, x1, x2, x3)
    half: tl.constexpr = x.shape[1] // 2
    even, odd = tl.split(tl.permute(tl.reshape(x, [x.shape[0], half, 2, 4]), [0, 1, 3, 2]))
    k: tl.constexpr = x.shape[0] * half
    return tl.reshape(even, [k, 4]), tl.reshape(odd, [k, 4])


@triton.jit
def _rows_of_blocks(fragments, i: tl.constexpr):
    """The words of the rows 4 b + i, four blocks b of each strip: two of the even groups, two of
    the odd ones."""
    a, b, c, d = fragments[i], fragments[4 + i], fragments[8 + i], fragments[12 + i]
    even0, odd0 = _even_odd(a[0], b[0], c[0], d[0])
    even1, odd1 = _even_odd(a[1], b[1], c[1], d[1])
    return (even0, even1), (odd0, odd1)


@triton.jit
def _random_words_of_columns(block, group, C, stream, seed, N: tl.constexpr, FIT: tl.constexpr):
    """Four words a block, ``[K, 4]``, one for each column of a group; and those of the second
    halves of the blocks (1:2)."""
    block *= 2 // N
    if FIT == "ragged":
        first = block.to(tl.int64) * C + 4 * group
        a = (
            word_of_block(first, stream, seed),
            word_of_block(first + 1, stream, seed),
            word_of_block(first + 2, stream, seed),
            word_of_block(first + 3, stream, seed),
        )
        first += C
        b = (
            word_of_block(first, stream, seed),
            word_of_block(first + 1, stream, seed),
            word_of_block(first + 2, stream, seed),
            word_of_block(first + 3, stream, seed),
        )
    else:
        call = block * (C // 4) + group
        a = words_of_call(call, stream, seed)
        b = words_of_call(call + C // 4, stream, seed)
    return a, b


@triton.jit
def _column(x0, x1, x2, x3, i: tl.constexpr, ISA: tl.constexpr):
    """The words of the blocks of column i of each group."""
    selector: tl.constexpr = 0x5410 if i % 2 == 0 else 0x7632
    half: tl.constexpr = i // 2
    w01 = byte_permute(x0[half], x1[half], selector, ISA)
    w23 = byte_permute(x2[half], x3[half], selector, ISA)
    return w01, w23


@triton.jit
def _compress_groups(
    values_ptr, x0, x1, x2, x3, row0, group0, rows, per_row, C, stream, seed, HALF: tl.constexpr,
    METHOD: tl.constexpr, N: tl.constexpr, STORAGE: tl.constexpr, FIT: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    """Store the values of the groups ``group0``, ``group0 + 2``, ...; returns the ``quad_bytes`` of
    their columns, ``[K, 4]``.

    One half of the groups at a time, so that a thread holds half as many random words.
    """
    k = tl.arange(0, x0[0].shape[0])[:, None]
    group = group0 + 2 * (k % HALF)
    block = row0 // 4 + 4 * (k // HALF) + tl.arange(0, 4)[None, :]
    if METHOD == "mvue":
        numbers = zero_like(x0[0], ISA) + block
        random, second = _random_words_of_columns(numbers, group, C, stream, seed, N, FIT)
    nibbles = ()
    for i in tl.static_range(4):
        w01, w23 = _column(x0, x1, x2, x3, i, ISA)
        if METHOD == "mse":
            values, code = pack_block(w01, w23, 0, 0, METHOD, N, STORAGE, ISA)
        else:
            values, code = pack_block(w01, w23, random[i], second[i], METHOD, N, STORAGE, ISA)
        column = 4 * group + i
        to = values_ptr + column.to(tl.int64) * per_row + block
        if FIT == "full":
            tl.store(to, values)
        else:
            tl.store(to, values, mask=(column < rows) & (block < per_row))
        nibbles += (quad_bytes(_unstack(code), METHOD, ISA),)
    pairs = tl.join(tl.join(nibbles[0], nibbles[2]), tl.join(nibbles[1], nibbles[3]))
    return tl.reshape(pairs, [x0[0].shape[0], 4])


@triton.jit
def compress_strips(
    OPERAND: tl.constexpr, inputs, blob, R, C, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr, STORAGE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    AGAIN: tl.constexpr, OPERANDS: tl.constexpr,
):  # fmt: skip
    """``compress_columns``; AGAIN if the program has read its tile before."""
    at = strip_position(ROWS, COLUMNS, AGAIN, OPERANDS)
    fragments = _load_strips(OPERAND, inputs, at, R, C, FIT, ISA)
    even0, odd0 = _rows_of_blocks(fragments, 0)
    even1, odd1 = _rows_of_blocks(fragments, 1)
    even2, odd2 = _rows_of_blocks(fragments, 2)
    even3, odd3 = _rows_of_blocks(fragments, 3)
    # Of the blob: its rows are the columns of x.
    rows, per_row = padded_rows(C, LAYOUT), padded_columns(R, LAYOUT, 4)
    columns = padded_columns(R, LAYOUT, 1)
    values_ptr = blob.to(tl.pointer_type(tl.int32))
    metadata = blob.to(tl.pointer_type(tl.int8)) + tl.cast(rows, tl.int64) * columns
    row0, _, group0, _, _ = at
    half: tl.constexpr = COLUMNS // 8
    even = _compress_groups(
        values_ptr, even0, even1, even2, even3, row0, group0, rows, per_row, C, stream, seed, half,
        METHOD, N, STORAGE, FIT, ISA,
    )  # fmt: skip
    odd = _compress_groups(
        values_ptr, odd0, odd1, odd2, odd3, row0, group0 + 1, rows, per_row, C, stream, seed, half,
        METHOD, N, STORAGE, FIT, ISA,
    )  # fmt: skip
    # By pair of strips, strip, group // 4, group // 2, column of the group, group % 2. The rows r
    # and r + 8 of the blob are the same column of the groups g and g + 2.
    strips: tl.constexpr = ROWS // 16
    apart = tl.reshape(tl.join(even, odd), [strips // 2, 2, half // 2, 2, 4, 2])
    even, odd = tl.split(tl.permute(apart, [0, 2, 5, 4, 3, 1]))
    upper, lower = tl.split(even)
    even = tl.reshape(merge_bytes(upper, lower, LAYOUT, ISA), [strips // 2, 4 * half])
    upper, lower = tl.split(odd)
    odd = tl.reshape(merge_bytes(upper, lower, LAYOUT, ISA), [strips // 2, 4 * half])
    k = tl.arange(0, 4 * half)[None, :]
    pair = row0 // 32 + tl.arange(0, strips // 2)[:, None]
    inside = (4 * group0 + k // 8 * 16 + k % 8 < rows) & (32 * pair < columns)
    store_pairs(metadata, even, odd, 4 * group0, k, pair, rows, columns, inside, LAYOUT, ISA)


@triton.jit
def compress_columns(
    OPERAND: tl.constexpr, inputs, blob, R, C, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr, STORAGE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    OPERANDS: tl.constexpr = 1,
):  # fmt: skip
    """Compress this program's tile along its rows into the blob of the transpose of x.

    Args: as of every tile function, see the package's docstring.
    """
    compress_strips(
        OPERAND, inputs, blob, R, C, seed, stream,
        METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA, False, OPERANDS,
    )  # fmt: skip
