"""Masks in place of a value: a program prunes blocks or tiles of a tensor, or writes their mask.

``codegen.masks`` prints a kernel around one of these for each number of dimensions. What is pruned
(``operand``, ``inputs``: ``blocks``) is read once and ``y`` written once, each with strides of its
own; MASK says that ``y`` is the keep mask, bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.blocks import (
    as_bits,
    first_lane,
    load_across,
    load_run,
    offset,
    places_in_runs,
    store_across,
    store_run,
)
from nmcompile.codegen.device.philox import words_in_order
from nmcompile.codegen.device.survivors import best_pattern, survivors_of_block


@triton.jit
def outcome(keep, values, COUNT: tl.constexpr, MASK: tl.constexpr):
    """What is stored of each element: its value or zero, or whether it is kept."""
    results = ()
    for i in tl.static_range(COUNT):
        if MASK:
            results += (keep[i].to(tl.int32),)
        else:
            results += (tl.where(keep[i], values[i], 0),)
    return results


@triton.jit
def random_words(
    first, LANES: tl.constexpr, seed, stream, METHOD: tl.constexpr, SECOND: tl.constexpr
):
    """The words of this program's blocks, where the method draws them."""
    words = 0
    if METHOD == "approx-mvue" or (METHOD != "mse" and SECOND == 0):
        words = words_in_order(first, LANES, stream, tl.load(seed), SECOND)
    return words


@triton.jit
def prune_runs(
    operand, inputs, y, outer, along, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, M: tl.constexpr, PADDED: tl.constexpr,
    STORAGE: tl.constexpr, MASK: tl.constexpr, LANES: tl.constexpr, SINGLE: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Blocks whose elements lie beside each other.

    Args:
        outer: sizes of the other dimensions, their strides in what is pruned and in ``y``, and the
            product of the sizes.
        along: the same of the dimensions that the blocks run along.
        PADDED: M, or the power of two above it.
        SINGLE: there are no other dimensions.
        WHOLE: as of ``blocks.places_in_runs``.
    """
    rows, x_rows, y_rows, count = outer
    sizes, x_along, y_along, size = along
    first = first_lane(LANES, WIDE)
    row, column, inside = places_in_runs(first, size, M, PADDED, LANES, SINGLE, WHOLE)
    inside &= row < count
    at = offset(row, rows, x_rows) + offset(column, sizes, x_along)
    block = load_run(operand, inputs, at, inside, PADDED, ISA)
    word = random_words(first, LANES, seed, stream, METHOD, 0)
    second = random_words(first, LANES, seed, stream, METHOD, 1)
    keep, values = survivors_of_block(block, word, second, METHOD, N, M, STORAGE, ISA)
    results = outcome(keep, values, M, MASK)
    at = offset(row, rows, y_rows) + offset(column, sizes, y_along)
    width: tl.constexpr = 1 if MASK else (4 if STORAGE == "fp32" else 2)
    store_run(as_bits(y, width), at, inside, results, M, PADDED)


@triton.jit
def prune_across(
    operand, inputs, y, outer, along, inner, seed, stream,
    METHOD: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    STORAGE: tl.constexpr, MASK: tl.constexpr, LANES: tl.constexpr, SINGLE: tl.constexpr,
    WIDE: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Blocks of which those beside each other lie beside each other: ``inner`` runs fastest."""
    rows, x_rows, y_rows, count = outer
    sizes, x_along, y_along, size = along
    inners, x_inner, y_inner, per_row = inner
    first = first_lane(LANES, WIDE)
    lane = first + tl.arange(0, LANES)
    i, k = lane % per_row, lane // per_row
    blocks = (size + M - 1) // M
    row, element, inside = k * 0, k * M, k < blocks
    if not SINGLE:
        row, element, inside = k // blocks, k % blocks * M, k < blocks * count
    at = offset(row, rows, x_rows) + offset(i, inners, x_inner)
    block = load_across(operand, inputs, at, element, size, inside, sizes, x_along, M, ISA)
    word = random_words(first, LANES, seed, stream, METHOD, 0)
    second = random_words(first, LANES, seed, stream, METHOD, 1)
    keep, values = survivors_of_block(block, word, second, METHOD, N, M, STORAGE, ISA)
    results = outcome(keep, values, M, MASK)
    at = offset(row, rows, y_rows) + offset(i, inners, y_inner)
    width: tl.constexpr = 1 if MASK else (4 if STORAGE == "fp32" else 2)
    pointer = as_bits(y, width)
    store_across(pointer, at, element, size, inside, sizes, y_along, results, M)


@triton.jit
def kept_by(chosen, COUNT: tl.constexpr):
    """Which elements a pattern keeps."""
    keep = ()
    for i in tl.static_range(COUNT):
        keep += ((chosen & (1 << i)) != 0,)
    return keep


@triton.jit
def transposed(parts, M: tl.constexpr, SWAPPED: tl.constexpr):
    """The elements of an M x M tile column by column, if SWAPPED."""
    found = parts
    if SWAPPED:
        found = ()
        for k in tl.static_range(M * M):
            found += (parts[k % M * M + k // M],)
    return found


@triton.jit
def prune_tiles(
    operand, inputs, y, outer, lines, line,
    KEPT: tl.constexpr, COUNT: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    SWAPPED: tl.constexpr, STORAGE: tl.constexpr, MASK: tl.constexpr, LANES: tl.constexpr,
    SINGLE: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """M x M tiles with a transposable mask.

    Args:
        outer: as of ``prune_runs``.
        lines, line: size, stride in what is pruned and in ``y`` of the dimension across a tile's
            lines and of that along one. A line is a row of a tile, or a column if SWAPPED.
        KEPT, COUNT: the patterns to choose from, as of ``best_pattern``.
    """
    others, x_others, y_others, count = outer
    height, x_down, y_down = lines
    width, x_along, y_along = line
    first = first_lane(LANES, WIDE)
    row, column, inside = places_in_runs(first, width, M, M, LANES, False, WHOLE)
    bands = (height + M - 1) // M
    other, top = row * 0, row * M
    if not SINGLE:
        other, top = row // bands, row % bands * M
    inside &= row < bands * count
    at = offset(other, others, x_others) + top * x_down + column * x_along
    tile = ()
    for k in tl.static_range(M):
        tile += load_run(operand, inputs, at + k * x_down, inside & (top + k < height), M, ISA)
    tile = transposed(tile, M, SWAPPED)
    keep = kept_by(best_pattern(tile, KEPT, COUNT, N, M, STORAGE), M * M)
    results = transposed(outcome(keep, tile, M * M, MASK), M, SWAPPED)
    bytes: tl.constexpr = 1 if MASK else (4 if STORAGE == "fp32" else 2)
    pointer = as_bits(y, bytes)
    at = offset(other, others, y_others) + top * y_down + column * y_along
    for k in tl.static_range(M):
        some = results[k * M : k * M + M]
        store_run(pointer, at + k * y_down, inside & (top + k < height), some, M, M)
