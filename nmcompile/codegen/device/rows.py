"""Blocks along the columns of x: the blob of x itself, ``[R, C]``.

A program holds its tile as two fragments, the rows r with r % 16 < 8 and the rows r + 8, because
the layouts combine those two rows in one word of metadata.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.layouts import padded_columns, padded_rows, quad_word, store_pairs
from nmcompile.codegen.device.mse import select
from nmcompile.codegen.device.mvue import sample12, sample24
from nmcompile.codegen.device.philox import word_of_block, words_of_call
from nmcompile.codegen.device.primitives import byte_permute


@triton.jit
def first_row(ROWS: tl.constexpr):
    """The first row of this program's tile."""
    return (tl.program_id(1) + tl.program_id(2) * tl.num_programs(1)) * ROWS


@triton.jit
def row_position(
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, OPERANDS: tl.constexpr, SLICE: tl.constexpr
):
    """Position of the upper fragment of the slice: rows r of the tile with r % 16 < 8."""
    k = _rows_of_slice(SLICE)[:, None]
    rows = k // 8 * 16 + k % 8
    groups = tl.arange(0, COLUMNS // 4)[None, :]
    column_tile = tl.program_id(0) // OPERANDS
    return first_row(ROWS), rows, column_tile * (COLUMNS // 4), groups, False


@triton.jit
def _rows_of_slice(SLICE: tl.constexpr):
    """Numbers of the slice's rows r with r % 16 < 8, among those of the tile."""
    return SLICE * 32 + tl.arange(0, 32)


@triton.jit
def shifted(at, ROWS: tl.constexpr):
    """The position ROWS rows further down."""
    row0, rows, group0, groups, again = at
    return row0, rows + ROWS, group0, groups, again


@triton.jit
def _quads(x):
    """``[T, 4 Q]`` to four ``[T, Q]``, by index modulo 4."""
    pairs = tl.reshape(x, [x.shape[0], x.shape[1] // 4, 2, 2])
    even, odd = tl.split(pairs)
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _interleaved(x0, x1, x2, x3):
    """The inverse of ``_quads``."""
    pairs = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(pairs, [x0.shape[0], x0.shape[1] * 4])


@triton.jit
def pack_block(
    w01, w23, word0, word1,
    METHOD: tl.constexpr, N: tl.constexpr, STORAGE: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Survivors and code of a block of four; ``word1`` is that of the second pair in 1:2."""
    if METHOD == "mse":
        values, code = select(w01, w23, N, STORAGE, ISA)
    elif N == 2:
        values, code = sample24(w01, w23, word0, STORAGE, ISA)
    else:
        values, code = sample12(w01, w23, word0, word1, STORAGE, ISA)
    return values, code


@triton.jit
def _random_words_of_rows(at, C, stream, seed, N: tl.constexpr, FIT: tl.constexpr):
    """The words of the blocks of a fragment, ``[T, G]`` each (the second for 1:2)."""
    row0, rows, group0, groups, _ = at
    row = row0 + rows
    per_group: tl.constexpr = 2 // N
    if FIT == "ragged":
        # Blocks per row need not be a multiple of four: one call each.
        blocks = (C + 2 * N - 1) // (2 * N)
        block = row.to(tl.int64) * blocks + (group0 + groups) * per_group
        word0, word1 = word_of_block(block, stream, seed), word_of_block(block + 1, stream, seed)
    else:
        quads = tl.arange(0, groups.shape[1] // 4)[None, :]
        call = row * (C // 16 * per_group) + (group0 // 4 + quads) * per_group
        a = words_of_call(call, stream, seed)
        if N == 2:
            word0 = _interleaved(a[0], a[1], a[2], a[3])
            word1 = word0
        else:
            b = words_of_call(call + 1, stream, seed)
            word0 = _interleaved(a[0], a[2], b[0], b[2])
            word1 = _interleaved(a[1], a[3], b[1], b[3])
    return word0, word1


@triton.jit
def compress_fragment(
    values_ptr, words, at, C, rows, per_row, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, STORAGE: tl.constexpr, FIT: tl.constexpr,
    ISA: tl.constexpr, others, other_ptrs,
):  # fmt: skip
    """Store the values of a fragment; returns the codes, four ``[T, Q]``.

    What lies at the same places of ``others``, words too, is stored at ``other_ptrs`` (MSE).
    """
    w01, w23 = words
    if METHOD == "mse":
        values, code = pack_block(w01, w23, 0, 0, METHOD, N, STORAGE, ISA)
    else:
        word0, word1 = _random_words_of_rows(at, C, stream, seed, N, FIT)
        values, code = pack_block(w01, w23, word0, word1, METHOD, N, STORAGE, ISA)
    _store_values_of_rows(values_ptr, values, at, rows, per_row, FIT)
    for k in tl.static_range(len(others)):
        kept = byte_permute(others[k][0], others[k][1], code, ISA)
        to = other_ptrs[k].to(tl.pointer_type(tl.int32))
        _store_values_of_rows(to, kept, at, rows, per_row, FIT)
    return _quads(code)


@triton.jit
def _store_values_of_rows(ptr, values, at, rows, per_row, FIT: tl.constexpr):
    row0, row, group0, groups, _ = at
    inside = (row0 + row < rows) & (group0 + groups < per_row)
    if FIT == "ragged":
        to = ptr + (row0 + row).to(tl.int64) * per_row + (group0 + groups)
        tl.store(to, values, mask=inside)
    else:
        to = ptr + row0.to(tl.int64) * per_row + group0 + (row * per_row + groups)
        if FIT == "full":
            tl.store(to, values)
        else:
            tl.store(to, values, mask=inside)


@triton.jit
def compress_slice(
    OPERAND: tl.constexpr, inputs, blob, R, C, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr, STORAGE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    OPERANDS: tl.constexpr, SLICE: tl.constexpr, OTHERS: tl.constexpr, other_blobs,
):  # fmt: skip
    """Compress 64 rows of this program's tile, the SLICE-th."""
    at = row_position(ROWS, COLUMNS, OPERANDS, SLICE)
    below = shifted(at, 8)
    upper = OPERAND(at, inputs, R, C, FIT, ISA)
    lower = OPERAND(below, inputs, R, C, FIT, ISA)
    rows, per_row = padded_rows(R, LAYOUT), padded_columns(C, LAYOUT, 4)
    values = blob.to(tl.pointer_type(tl.int32))
    if OTHERS is None:
        above = ()
        beneath = ()
    else:
        above = OTHERS(at, inputs, R, C, FIT)
        beneath = OTHERS(below, inputs, R, C, FIT)
    upper = compress_fragment(
        values, upper, at, C, rows, per_row, seed, stream, METHOD, N, STORAGE, FIT, ISA,
        above, other_blobs,
    )  # fmt: skip
    lower = compress_fragment(
        values, lower, below, C, rows, per_row, seed, stream, METHOD, N, STORAGE, FIT, ISA,
        beneath, other_blobs,
    )  # fmt: skip
    word = quad_word(upper, lower, METHOD, LAYOUT, ISA)
    even, odd = tl.split(tl.reshape(word, [32, COLUMNS // 32, 2]))
    row0, row, group0, _, _ = at
    columns = padded_columns(C, LAYOUT, 1)
    metadata = blob.to(tl.pointer_type(tl.int8)) + tl.cast(rows, tl.int64) * columns
    k = _rows_of_slice(SLICE)[:, None]
    pair = group0 // 8 + tl.arange(0, COLUMNS // 32)[None, :]
    inside = (row0 + row < rows) & (32 * pair < columns)
    store_pairs(metadata, even, odd, row0, k, pair, rows, columns, inside, LAYOUT, ISA)
    for number in tl.static_range(len(above)):
        to = other_blobs[number].to(tl.pointer_type(tl.int8)) + tl.cast(rows, tl.int64) * columns
        store_pairs(to, even, odd, row0, k, pair, rows, columns, inside, LAYOUT, ISA)


@triton.jit
def compress_rows(
    OPERAND: tl.constexpr, inputs, blob, R, C, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr, STORAGE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    OPERANDS: tl.constexpr = 1, OTHERS: tl.constexpr = None, other_blobs=None,
):  # fmt: skip
    """Compress this program's tile along its columns into the blob of x.

    Args: as of every tile function, see the package's docstring. ``OTHERS`` gives the words of
    further operands (MSE), of which what lies at the kept places is packed into ``other_blobs``.

    64 rows at a time, so that a long prologue has the registers of one slice alone: the values of
    a slice are stored before the next is loaded, and no two share the places of their rows, which
    compilers would keep in registers from one to the next.
    """
    for k in tl.static_range(ROWS // 64):
        compress_slice(
            OPERAND, inputs, blob, R, C, seed, stream,
            METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA, OPERANDS, k, OTHERS, other_blobs,
        )  # fmt: skip
