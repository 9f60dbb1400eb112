"""The simulation's masks are the reference's, and one that rounding decides is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fuzzing.case import Find, Tally
from fuzzing.compare import compare_masked
from fuzzing.masks import is_pruned, keep, keep_ragged, keep_tiles
from nmcompile.masks import reference


def test_masks_of_groups_are_those_of_the_reference() -> None:
    x, offsets = torch.randn(11, 3, dtype=torch.float64), torch.tensor([5, 5, 9])
    kept = keep_ragged(x, 2, 4, 0, offsets)
    parts = [reference.prune_and_mask(part, None, 0, 2, 4, (0,), "mse")[1]
             for part in (x[:5], x[5:9], x[9:])]  # fmt: skip
    assert torch.equal(kept, torch.cat(parts))


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (2, 6), (4, 8)])
@pytest.mark.parametrize("dims", [(1,), (0,), (0, 2, 3)])
def test_masks_are_those_of_the_reference(n: int, m: int, dims: tuple[int, ...]) -> None:
    x = torch.randn(5, 8, 3, 2, dtype=torch.float64)
    kept = keep(x, n, m, dims)
    expected = reference.prune_and_mask(x, None, 0, n, m, dims, "mse")[1]
    assert torch.equal(kept, expected)
    assert is_pruned(x * kept, n, m, dims)
    assert not is_pruned(x, n, m, dims)


@pytest.mark.parametrize("dims", [(0, 1), (1, 0)])
def test_transposable_masks_are_those_of_the_reference(dims: tuple[int, int]) -> None:
    x = torch.randn(6, 10, dtype=torch.float64)
    expected = reference.prune_and_mask(x, None, 0, 2, 4, (0, 1), "transposable")[1]
    assert torch.equal(keep_tiles(x, 2, 4, dims, 1), expected)


X = torch.randn(4, 6, 8, dtype=torch.float64)
DECIDED: dict[str, tuple[Callable[[], Tensor], bool]] = {
    "by values": (lambda: X.sum(2), False),
    "by equal values": (lambda: torch.ones_like(X)[0], True),
    "by rounding alone": (lambda: torch.layer_norm(X, (8,)).mean(2), True),
}


@pytest.mark.parametrize("name", DECIDED)
def test_a_mask_that_rounding_decides_is_no_find(name: str) -> None:
    make, is_tie = DECIDED[name]
    again = lambda: [keep(make(), 1, 2, (1,)).double()]  # noqa: E731
    simulated, tally = again(), Tally()
    compare_masked("masks", simulated, simulated, [None], again, tally)
    assert tally.checks == {"masks": 1}
    wrong = [1 - simulated[0]]
    if not is_tie:
        with pytest.raises(Find):
            compare_masked("masks", wrong, simulated, [None], again, tally)
    else:
        compare_masked("masks", wrong, simulated, [None], again, tally)
        assert tally.checks["masks: a tie"] == 1
