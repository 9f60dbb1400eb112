"""What a launch of a generated kernel needs to know: its grid, FIT and tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The most programs of grid axes 1 and 2.
_AXIS_LIMIT = 65535
# From here on the number of a random call may take more than 32 bits.
_LARGE = 2**34


def _tiles(size: int, unit: int, tile: int) -> int:
    return -(-(-(-size // unit) * unit) // tile)


def launch_grid(
    rows: int, columns: int, tile_rows: int, tile_columns: int, unit: int = 128
) -> tuple[int, int, int]:
    """Programs for an x of ``[rows, columns]``: column tiles first, row tiles on two axes.

    ``unit`` is the largest padding unit of the layouts: padding is written by the kernel too.
    """
    row_tiles = _tiles(rows, unit, tile_rows)
    planes = -(-row_tiles // _AXIS_LIMIT)
    return _tiles(columns, unit, tile_columns), -(-row_tiles // planes), planes


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
        and all(stride % 8 == 0 for stride in strides)
        and all(address % 16 == 0 for address in addresses)
    )
    if not aligned:
        return "ragged"
    # Whole layout tiles as well, so that the blob has no padding.
    full = rows % max(tile_rows, 128) == 0 and columns % max(tile_columns, 128) == 0
    return "full" if full else "aligned"


@dataclass(frozen=True, slots=True)
class Tile:
    """Elements of x that a program owns, and its warps."""

    rows: int
    columns: int
    warps: int


def tile(orientations: str, method: str) -> Tile:
    """The tile of a kernel.

    Chosen by ``benchmarks.static_check``: the fewest instructions among the tiles that load and
    store 16 bytes at a time without spills, with rows long enough for whole memory sectors in
    both directions.

    Args:
        orientations: "rows", "columns" or "both".
        method: "mse" or "mvue"; the same tiles suit both at present.
    """
    return {"rows": Tile(64, 256, 8), "columns": Tile(256, 64, 4), "both": Tile(128, 128, 4)}[
        orientations
    ]
