"""Groups of any sizes are moved to where blocks start, in as much room as is promised."""

from __future__ import annotations

import itertools

import pytest
import torch

from nmcompile.masks.ragged import padded_size, places


@pytest.mark.parametrize("m", [2, 4, 5])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_split_of_a_few_elements(m: int, dtype: torch.dtype) -> None:
    """A group starts at the first multiple of m behind the one before it, empty ones nowhere."""
    for size in (1, 2, 7):
        for ends in itertools.combinations_with_replacement(range(size + 1), 3):
            expected, start, free = [], 0, 0
            for end in (*ends, size):
                expected += [free + i for i in range(end - start)]
                free += -(-(end - start) // m) * m
                start = end
            assert places(torch.tensor(ends, dtype=dtype), size, m).tolist() == expected
            assert free <= padded_size(size, 3, m)


def test_the_room_is_a_multiple_of_m_and_no_more_than_the_worst_split_needs() -> None:
    assert padded_size(8, 0, 4) == 8
    assert padded_size(67, 5, 4) == 84  # six groups, the last one of 67 - 5 elements
    assert padded_size(2, 100, 4) == 8  # two of them have one element


def test_no_groups_at_all() -> None:
    assert places(torch.empty(0, dtype=torch.int64), 3, 4).tolist() == [0, 1, 2]
    assert places(torch.tensor([0, 0]), 0, 4).tolist() == []
