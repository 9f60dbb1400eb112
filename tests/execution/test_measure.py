"""Measuring at compile time: what is timed, on real tensors, without touching the random state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from nmcompile.compressed.layouts import Layout
from nmcompile.execution import measure
from nmcompile.masks.formats import Method


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The results of what was timed, dense first; the clock is left out."""
    results: list[torch.Tensor] = []

    def median(run: Callable[[], Any]) -> float:
        results.append(run())
        return 1.0

    monkeypatch.setattr(measure, "_median", median)
    measure.measure.cache_clear()
    return results


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("method", [Method.MSE, Method.MVUE, Method.TRANSPOSABLE])
def test_both_products_are_those_of_the_site(
    left: bool, method: Method, timed: list[torch.Tensor]
) -> None:
    state = torch.get_rng_state()
    with FakeTensorMode():  # as in the passes
        measure.measure(64, 32, 96, left, method, Layout.CUSPARSELT_SM90, "bfloat16", "cpu")
    dense, sparse = timed
    assert not any(isinstance(t, FakeTensor) for t in timed)
    assert dense.shape == sparse.shape == ((64, 32) if left else (32, 64))
    # Half of each sum is missing (MSE) or drawn (MVUE): alike, not equal.
    correlation = torch.corrcoef(torch.stack([dense.flatten(), sparse.flatten()]).float())[0, 1]
    assert 0.6 < correlation < 0.999
    assert torch.equal(torch.get_rng_state(), state)


def test_a_site_is_measured_once(timed: list[torch.Tensor]) -> None:
    for _ in range(2):
        measure.measure(64, 32, 96, True, Method.MSE, Layout.ROW_MAJOR, "bfloat16", "cpu")
    assert len(timed) == 2
