"""Where the metadata lies: sizes, bijections, tiles, and PyTorch's own CUTLASS conversion."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.sparse import _semi_structured_conversions as torch_cutlass

from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat

LAYOUTS = tuple(Layout)
TWO_FOUR = NMFormat(2, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("i", "j"), [(1, 1), (2, 3), (3, 2)])
def test_every_nibble_belongs_to_one_block(layout, i, j):
    rows, columns = i * layout.row_multiple, j * layout.column_multiple
    nibbles = layout.nibbles(rows, columns)
    assert nibbles.shape == (rows, columns // 4)
    assert torch.equal(nibbles.flatten().sort().values, torch.arange(rows * columns // 4))


@pytest.mark.parametrize(
    ("layout", "rows", "columns", "size"),
    [
        (Layout.CUSPARSELT_SM90, 64, 64, 512),
        (Layout.CUSPARSELT_SM80, 128, 64, 1024),
        (Layout.CUTLASS_SM80, 32, 32, 128),
        (Layout.ROW_MAJOR, 1, 32, 4),
    ],
)
def test_a_tile_owns_contiguous_bytes(layout, rows, columns, size):
    assert (layout.row_multiple, layout.column_multiple) == (rows, columns)
    byte = layout.nibbles(3 * rows, 2 * columns) // 2
    starts = []
    for tile in byte.unfold(0, rows, rows).unfold(1, columns // 4, columns // 4).flatten(0, 1):
        assert tile.max() - tile.min() + 1 == size
        starts.append(int(tile.min()))
    by_column = [0, 3, 1, 4, 2, 5]  # the tiles of both Ampere layouts follow each other in columns
    order = by_column if layout in (Layout.CUSPARSELT_SM80, Layout.CUTLASS_SM80) else range(6)
    assert starts == [size * k for k in order]


def test_hopper_bytes_are_those_of_the_formula():
    rows, columns = 192, 96
    nibbles = Layout.CUSPARSELT_SM90.nibbles(rows, columns)
    for r, c in itertools.product(range(rows), range(0, columns, 4)):
        # pytorch/ao: 32 x 64 bytes a row of tiles, [tile, (r % 64) / 16, r % 8, ...]
        start = c // 32 * 256 + (r % 8 * 8 + r % 64 // 16 * 64 + r // 64 * 8 * columns)
        g = c // 4
        assert nibbles[r, g] == 2 * (start + 2 * (g % 4) + g % 8 // 4) + r // 8 % 2


def test_both_ampere_layouts_agree_within_a_tile():
    cutlass = Layout.CUTLASS_SM80.nibbles(128, 64)
    cusparselt = Layout.CUSPARSELT_SM80.nibbles(128, 64)
    for r, g in itertools.product(range(0, 128, 32), range(0, 16, 8)):
        tile = slice(r, r + 32), slice(g, g + 8)
        assert torch.equal(cutlass[tile] - cutlass[r, g], cusparselt[tile] - cusparselt[r, g])
    assert cusparselt[::32, 0].tolist() == [0, 256, 512, 768]
    assert cusparselt[0, 8] == 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (96, 64), (128, 160)])
def test_cutlass_is_what_pytorch_converts_to(dtype, rows, columns):
    x = torch.randn(rows, columns).to(dtype)
    keep = torch.rand(rows, columns // 4, 4).argsort(-1).argsort(-1).lt(2).view(rows, columns)
    pruned = torch.where(keep, x, 0)
    packed = packing.pack(keep, pruned, (rows, columns), Layout.CUTLASS_SM80, TWO_FOUR, "mse")
    values, metadata = packing.split(packed, rows, columns, Layout.CUTLASS_SM80)
    sparse, reordered = torch_cutlass.sparse_semi_structured_from_dense_cutlass(pruned)
    assert torch.equal(values, sparse)
    assert torch.equal(metadata.view(torch.int16), reordered.flatten())
    words = metadata.view(torch.int16).view(rows, columns // 16)
    dense = torch_cutlass.sparse_semi_structured_to_dense_cutlass(values, words)
    assert torch.equal(dense, pruned)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes(layout):
    for rows, columns in itertools.product((0, 1, 63, 64, 200), (0, 1, 31, 64, 130)):
        r, c = layout.padded(rows, columns)
        assert rows <= r < rows + layout.row_multiple
        assert columns <= c < columns + layout.column_multiple
        assert r % layout.row_multiple == c % layout.column_multiple == 0
        assert layout.packed_shape(rows, columns, torch.bfloat16) == (r, 9 * c // 16)
        for dtype in (torch.float32, torch.float64):
            height, width = layout.packed_shape(rows, columns, dtype)
            need = r * c // 2 * dtype.itemsize + r * c // 8
            assert need <= height * width * dtype.itemsize < need + max(r, 1) * dtype.itemsize


def test_parse():
    assert Layout.parse("cutlass_sm80") is Layout.CUTLASS_SM80
    with pytest.raises(ValueError, match="did you mean 'cusparselt_sm90'"):
        Layout.parse("cusparselt_sm91")
