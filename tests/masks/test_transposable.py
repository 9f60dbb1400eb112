"""Transposable masks against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nmcompile.masks import reference


def legal_masks(n: int, m: int) -> torch.Tensor:
    """All m x m masks with n per row and column, found among all 2^(m*m): [patterns, m, m]."""
    rows = [r for r in itertools.product([False, True], repeat=m) if sum(r) == n]
    every = torch.tensor(list(itertools.product(rows, repeat=m)))
    return every[(every.sum(1) == n).all(-1)]


@pytest.mark.parametrize(("n", "m", "count"), [(2, 4, 90), (1, 4, 24), (3, 4, 24), (1, 2, 2)])
def test_the_kept_sum_is_the_largest(n, m, count):
    masks = legal_masks(n, m)
    assert len(masks) == len(reference.transposable_patterns(n, m)) == count
    x = torch.randn(500, m, m, generator=torch.Generator().manual_seed(0))
    keep = reference.transposable_keep(x, n)
    assert (keep.sum(-1) == n).all()
    assert (keep.sum(-2) == n).all()
    sums = (x.abs().double()[:, None] * masks).sum((-1, -2))
    kept = (x.abs().double() * keep).sum((-1, -2))
    torch.testing.assert_close(kept, sums.max(1).values, rtol=1e-6, atol=0)


def test_ties_go_to_the_first_pattern():
    keep = reference.transposable_keep(torch.ones(4, 4), 2)
    first = reference.transposable_patterns(2, 4)[0]
    assert [tuple(r.nonzero().flatten().tolist()) for r in keep] == list(first)
    assert first == ((0, 1), (0, 1), (2, 3), (2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_non_finite_values_are_kept(dtype):
    x = torch.full((4, 4), torch.finfo(dtype).max, dtype=dtype)
    x[0, 3], x[3, 0], x[3, 1] = math.nan, math.inf, -math.inf
    keep = reference.transposable_keep(x, 2)
    assert bool(keep[0, 3] and keep[3, 0] and keep[3, 1])
