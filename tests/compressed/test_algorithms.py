"""Which of the library's algorithms runs: its search is imitated, its operands are looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nmcompile import _cuda
from nmcompile.compressed import algorithms, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning

CPU = torch.device("cpu")
HALF = torch.bfloat16


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The operands of every search; each finds another algorithm."""
    seen: list[Any] = []
    monkeypatch.setattr(_cuda, "cusparselt_search", lambda *given: seen.append(given) or len(seen))
    algorithms.fastest.cache_clear()
    yield seen
    algorithms.fastest.cache_clear()


@pytest.mark.parametrize("layout", [Layout.CUSPARSELT_SM90, Layout.CUSPARSELT_SM80])
def test_a_product_of_its_sizes_is_searched_once(layout: Layout, searched: list[Any]) -> None:
    state = torch.get_rng_state()
    product = (128, 96, 192, layout, HALF, CPU)
    assert algorithms.fastest(*product, True, False, False) == 1
    assert algorithms.fastest(*product, True, False, False) == 1
    assert algorithms.fastest(*product, False, True, True) == 2
    (packed, dense, bias, transposed), (_, by_rows, added, _) = searched
    assert packed.shape == layout.packed_shape(128, 192, HALF)
    assert (dense.shape, dense.t().is_contiguous(), transposed) == ((192, 96), True, False)
    assert (bias, by_rows.is_contiguous(), added.shape) == (None, True, (128,))
    # It is an operand: two of each block, of random numbers, without a random number of the user's.
    kept = packing.unpack(packed, 128, 192, layout) != 0
    assert kept.view(128, -1, 4).sum(-1).eq(2).all()
    assert torch.equal(state, torch.get_rng_state())


def test_no_clock_decides_where_results_are_to_be_the_same(searched: list[Any]) -> None:
    dense = torch.empty(192, 96, dtype=HALF)
    how = Layout.CUSPARSELT_SM90, False, False
    algorithms._say_once_that_the_first_runs.cache_clear()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.warns(NMWarning, match="deterministic algorithms are asked for"):
            assert algorithms.fastest_for(128, dense, *how) == 0
        assert algorithms.fastest_for(128, dense, *how) == 0  # said once
    finally:
        torch.use_deterministic_algorithms(False)
    assert not searched
    assert algorithms.fastest_for(128, dense, *how) == 1


def test_without_memory_the_first_one_runs_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, searched: list[Any]
) -> None:
    def search(*_: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_cuda, "cusparselt_search", search)
    text = re.escape(
        "no memory on cpu to search the sparse library's algorithms for a product 64 x"
    )
    with pytest.warns(NMWarning, match=text):
        found = algorithms.fastest(
            64, 64, 64, Layout.CUSPARSELT_SM90, HALF, CPU, False, False, False
        )
    assert found == 0
