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
from nmcompile.codegen.device.rows import pack_block, shifted


@triton.jit
def strip_position(ROWS: tl.constexpr, COLUMNS: tl.constexpr, AGAIN: tl.constexpr):
    """Position of the first fragment: rows r with r % 16 == 0."""
    row_tile = tl.program_id(1) + tl.program_id(2) * tl.num_programs(1)
    rows = 16 * tl.arange(0, ROWS // 16)[:, None]
    groups = tl.arange(0, COLUMNS // 4)[None, :]
    return row_tile * ROWS, rows, tl.program_id(0) * (COLUMNS // 4), groups, AGAIN


@triton.jit
def _stack(x0, x1, x2, x3):
    """Four ``[S, G]`` to one ``[S, G, 4]``."""
    pairs = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(pairs, [x0.shape[0], x0.shape[1], 4])


@triton.jit
def _unstack(x):
    """The inverse of ``_stack``."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], 2, 2]))
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
def _stacked_rows(fragments, i: tl.constexpr):
    """The words ``[S, G, 4]`` of the rows 4 b + i: four blocks b of each strip."""
    a, b, c, d = fragments[i], fragments[4 + i], fragments[8 + i], fragments[12 + i]
    return _stack(a[0], b[0], c[0], d[0]), _stack(a[1], b[1], c[1], d[1])


@triton.jit
def _random_words_of_columns(zeros, at, C, stream, seed, N: tl.constexpr, FIT: tl.constexpr):
    """Four words a block, ``[S, G, 4]``, one for each column of a group; and those of the second
    halves of the blocks (1:2)."""
    row0, rows, group0, groups, _ = at
    block = zeros + ((row0 + rows)[:, :, None] // 4 + tl.arange(0, 4)[None, None, :])
    block *= 2 // N
    group = (group0 + groups)[:, :, None]
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
def _even_odd(x):
    """``[S, G, 4]`` to the even and the odd groups, ``[G / 2, S, 4]``."""
    apart = tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2, 4])
    return tl.split(tl.permute(apart, [1, 0, 3, 2]))


@triton.jit
def _store_values_of_columns(
    ptr, values, row0, group, i: tl.constexpr, rows, per_row, FIT: tl.constexpr
):
    """Values ``[G / 2, S, 4]`` of column i of the groups ``group`` ``[G / 2]``.

    In this order of dimensions Triton's choice of threads for the store (the last dimension, then
    the first) is the one that the loads gave, so that nothing goes through shared memory.
    """
    column = (4 * group + i)[:, None, None]
    strips = tl.arange(0, values.shape[1])[None, :, None]
    block = row0 // 4 + 4 * strips + tl.arange(0, 4)[None, None, :]
    to = ptr + column.to(tl.int64) * per_row + block
    if FIT == "full":
        tl.store(to, values)
    else:
        tl.store(to, values, mask=(column < rows) & (block < per_row))


@triton.jit
def compress_strips(
    OPERAND: tl.constexpr, inputs, blob, R, C, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr, STORAGE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    AGAIN: tl.constexpr,
):  # fmt: skip
    """``compress_columns``; AGAIN if the program has read its tile before."""
    at = strip_position(ROWS, COLUMNS, AGAIN)
    fragments = _load_strips(OPERAND, inputs, at, R, C, FIT, ISA)
    x0, x1 = _stacked_rows(fragments, 0), _stacked_rows(fragments, 1)
    x2, x3 = _stacked_rows(fragments, 2), _stacked_rows(fragments, 3)
    # Of the blob: its rows are the columns of x.
    rows, per_row = padded_rows(C, LAYOUT), padded_columns(R, LAYOUT, 4)
    columns = padded_columns(R, LAYOUT, 1)
    values_ptr = blob.to(tl.pointer_type(tl.int32))
    metadata = blob.to(tl.pointer_type(tl.int8)) + tl.cast(rows, tl.int64) * columns
    row0, row, group0, groups, _ = at
    half: tl.constexpr = groups.shape[1] // 2
    even_group = group0 + 2 * tl.arange(0, half)
    if METHOD == "mvue":
        zeros = zero_like(x0[0], ISA)
        random, second = _random_words_of_columns(zeros, at, C, stream, seed, N, FIT)
    nibbles = ()
    for i in tl.static_range(4):
        w01, w23 = _column(x0, x1, x2, x3, i, ISA)
        if METHOD == "mse":
            values, code = pack_block(w01, w23, 0, 0, METHOD, N, STORAGE, ISA)
        else:
            values, code = pack_block(w01, w23, random[i], second[i], METHOD, N, STORAGE, ISA)
        even, odd = _even_odd(values)
        _store_values_of_columns(values_ptr, even, row0, even_group, i, rows, per_row, FIT)
        _store_values_of_columns(values_ptr, odd, row0, even_group + 1, i, rows, per_row, FIT)
        nibbles += (quad_bytes(_unstack(code), METHOD, ISA),)
    # [S, G, 4], by strip, group and column of the group.
    stacked = _stack(nibbles[0], nibbles[1], nibbles[2], nibbles[3])
    strips: tl.constexpr = row.shape[0]
    # The rows r and r + 8 of the blob are the same column of the groups g and g + 2.
    apart = tl.reshape(stacked, [strips // 2, 2, half // 2, 2, 2, 4])
    even, odd = tl.split(tl.permute(apart, [0, 2, 4, 5, 3, 1]))
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
):  # fmt: skip
    """Compress this program's tile along its rows into the blob of the transpose of x.

    Args: as of every tile function, see the package's docstring.
    """
    compress_strips(
        OPERAND, inputs, blob, R, C, seed, stream,
        METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA, False,
    )  # fmt: skip
