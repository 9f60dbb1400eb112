"""What a launch of a generated kernel needs to know: its grid, FIT and tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The most programs of grid axes 1 and 2.
_AXIS_LIMIT = 65535
# From here on the number of a random call may take more than 32 bits.
_LARGE = 2**34
# From here on a place inside of a tile, in words of four elements, may take more than 31 bits.
_WIDE = 2**33
# Sizes with their padding are 32-bit numbers.
LARGEST = 2**31 - 1024


def _tiles(size: int, unit: int, tile: int) -> int:
    return -(-(-(-size // unit) * unit) // tile)


def launch_grid(
    rows: int,
    columns: int,
    tile_rows: int,
    tile_columns: int,
    unit: int = 128,
    operands: int = 1,
) -> tuple[int, int, int]:
    """Programs for an x of ``[rows, columns]``: column tiles first, row tiles on two axes.

    Where they take both axes there may be a few programs beyond the last tile. The programs of
    several operands at one tile follow each other: what one has read, the next finds in the cache.

    Args:
        rows, columns: of x.
        tile_rows, tile_columns: of the kernel.
        unit: the largest padding unit of the layouts; padding is written by the kernel too.
        operands: how many the kernel has.

    Raises:
        ValueError: the operand has more rows or columns than a kernel can count.
    """
    if max(rows, columns) > LARGEST:
        raise ValueError(f"kernels take at most {LARGEST} rows and columns, not {rows} x {columns}")
    row_tiles = _tiles(rows, unit, tile_rows)
    planes = -(-row_tiles // _AXIS_LIMIT)
    return _tiles(columns, unit, tile_columns) * operands, -(-row_tiles // planes), planes


def fit_of(
    rows: int,
    columns: int,
    strides: Sequence[int],
    addresses: Sequence[int],
    tile_rows: int,
    tile_columns: int,
) -> str:
    """FIT of a launch.

    Args:
        rows, columns: of x.
        strides: row strides, in elements, of all ``[rows, columns]`` inputs and outputs.
        addresses: their ``data_ptr()``.
        tile_rows, tile_columns: of the kernel.
    """
    aligned = (
        columns % 16 == 0
        and rows * columns < _LARGE
        and tile_rows * max([columns, *strides]) < _WIDE
        and all(stride % 8 == 0 for stride in strides)
        and all(address % 16 == 0 for address in addresses)
    )
    if not aligned:
        return "ragged"
    # No program beyond the operand, so that the blob has no padding either.
    programs = math.prod(launch_grid(rows, columns, tile_rows, tile_columns))
    exact = programs * tile_rows * tile_columns == rows * columns
    return "full" if exact else "aligned"


@dataclass(frozen=True, slots=True)
class Tile:
    """Elements of x that a program owns, and its warps."""

    rows: int
    columns: int
    warps: int


def tile(orientations: str, method: str, computes: bool = False, small: bool = False) -> Tile:
    """The tile of a kernel.

    Chosen by ``benchmarks.static_check``: the fewest instructions among the tiles that load and
    store 16 bytes at a time without spills, with rows long enough for whole memory sectors in
    both directions. Where a program of both orientations computes, by measurement on an H100
    (``gpu_check --section tiles``): it is straight code that reads its tile twice, of which a GPU
    keeps little at hand, and with 128 elements a thread, and not 64, the gradient of a SwiGLU
    layer's gate takes 4.4 times as long.

    Args:
        orientations: "rows", "columns", "both", or "dense" where nothing is compressed.
        method: "mse" or "mvue"; the same tiles suit both at present.
        computes: whether it computes what it compresses.
        small: whether a program needs registers for more than loads of 16 bytes, because it
            unpacks several inputs or reads them an element at a time. In both orientations it
            would spill, so it has half the rows, and stores 8 bytes at a time.
    """
    return {
        "rows": Tile(64, 256, 8),
        "dense": Tile(64, 256, 8),
        "columns": Tile(256, 64, 4),
        "both": Tile(64 if small else 128, 128, 8 if computes and not small else 4),
    }[orientations]
