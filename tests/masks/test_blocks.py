"""Where blocks lie: views that are the memory as it is, and their inverse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nmcompile.masks.blocks import BlockLayout, by_channel_group, dense_copy, layout_of


def views(x: Tensor) -> list[Tensor]:
    """Every order of the dimensions of ``x``."""
    return [x.permute(order) for order in itertools.permutations(range(x.dim()))]


def runs(x: Tensor, dims: Sequence[int]) -> set[tuple[float, ...]]:
    """The elements along ``dims``, flattened in that order, for every place of the others."""
    others = [d for d in range(x.dim()) if d not in dims]
    size = math.prod(x.shape[d] for d in dims)
    return {tuple(row.tolist()) for row in x.permute(*others, *dims).reshape(-1, size)}


def along(layout: BlockLayout, x: Tensor) -> list[tuple[float, ...]]:
    """The runs of the view ``[outer, size, inner]``, in its order."""
    view = layout.view(x)
    return [tuple(row.tolist()) for row in view.movedim(1, 2).reshape(-1, layout.size)]


@pytest.mark.parametrize("dims", [[0], [-1], [1], [0, 2], [2, 0], [0, 1, 2]])
def test_runs_are_those_of_plain_flattening_whatever_the_strides(dims: list[int]) -> None:
    for x in views(torch.arange(4 * 6 * 8.0).view(4, 6, 8)):
        layout = layout_of(x, dims, 2)
        found = along(layout, x)
        assert len(found) * layout.size == x.numel()
        whole = runs(x, [d % 3 for d in dims])
        # A run may be cut where a block of two ends anyway.
        assert layout.size % 2 == 0
        assert set(found) == {
            r[i : i + layout.size] for r in whole for i in range(0, len(r), layout.size)
        }


def test_writing_is_the_inverse_of_viewing() -> None:
    for x in views(torch.randn(2, 3, 5)):
        for dims in ([0], [2], [0, 2], [2, 0]):
            layout, out = layout_of(x, dims, 4), torch.empty_like(x)
            layout.write(layout.view(x), out)
            assert torch.equal(out, x)


@pytest.mark.parametrize(
    ("shape", "dims", "m", "direct"),
    [
        ((4, 6, 8), [2], 4, True),
        ((4, 6, 8), [0], 4, True),
        ((4, 6, 8), [1, 2], 4, True),
        ((4, 6, 8), [0, 2], 4, True),  # 4 divides the last 8: no block crosses to the next row
        ((4, 6, 7), [0, 2], 4, False),
        ((4, 6, 8), [2, 1], 4, False),  # across the order in memory
    ],
)
def test_memory_is_read_as_it_lies_where_that_is_possible(
    shape: tuple[int, ...], dims: list[int], m: int, direct: bool
) -> None:
    x = torch.randn(shape)
    layout = layout_of(x, dims, m)
    assert layout.direct is direct
    assert (layout.view(x).data_ptr() == x.data_ptr()) is direct


def test_a_transpose_numbers_its_blocks_as_the_matrix_itself() -> None:
    x = torch.randn(6, 8)
    for dim in (0, 1):
        a, b = layout_of(x, [dim], 4), layout_of(x.t(), [1 - dim], 4)
        assert torch.equal(a.view(x), b.view(x.t()))


def test_tiles_span_the_two_dimensions_in_their_order() -> None:
    x = torch.randn(3, 4, 6)
    for rows, columns in itertools.permutations(range(3), 2):
        layout = layout_of(x, [rows, columns], 2, tiles=True)
        (other,) = {0, 1, 2} - {rows, columns}
        assert torch.equal(layout.view(x), x.permute(other, rows, columns))
        assert (layout.size, layout.inner) == (x.shape[rows], x.shape[columns])
    assert layout_of(x, [1, 2], 2, tiles=True).direct
    assert not layout_of(x, [0, 1], 2, tiles=True).direct


def test_a_copy_is_made_of_gaps_and_overlaps_alone() -> None:
    x = torch.randn(4, 6)
    assert dense_copy(x) is x
    assert dense_copy(x.t()).data_ptr() == x.data_ptr()
    for gappy in (x[:, ::2], x[:1].expand(4, 6)):
        copy = dense_copy(gappy)
        assert torch.equal(copy, gappy)
        assert copy.stride() == torch.empty_like(gappy).stride()


def test_no_block_crosses_two_channel_groups() -> None:
    x = torch.arange(2.0 * 12 * 3).view(2, 12, 3)
    assert by_channel_group(x, (1, 2), 1, 1, 4) == (x, (1, 2))
    assert by_channel_group(x, (1,), 1, 3, 4) == (x, (1,))  # four channels each
    apart, dims = by_channel_group(x, (1, 2), 1, 2, 4)  # six, of which a block would leave two
    assert (apart.shape, dims) == ((2, 2, 6, 3), (2, 3))
    assert apart.data_ptr() == x.data_ptr()
