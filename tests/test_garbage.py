"""Collections are rare within the context, and as they were behind it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from nmcompile.garbage import collected_rarely


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def collections(objects: int) -> int:
    """How many of the youngest generation come while so many lists are made and kept."""
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    kept = [[] for _ in range(objects)]  # type: ignore[var-annotated]
    assert len(kept) == objects
    return gc.get_stats()[0]["collections"] - before


def test_collections_are_rare_within_it_alone() -> None:
    gc.set_threshold(700, 10, 10)
    with collected_rarely():
        assert collections(20_000) == 0
    assert gc.get_threshold() == (700, 10, 10)
    assert collections(20_000) > 10


def test_an_error_ends_it_too() -> None:
    gc.set_threshold(700, 10, 10)
    with pytest.raises(ZeroDivisionError), collected_rarely():
        _ = 1 / 0
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("chosen", [(0, 10, 10), (10**6, 50, 500)])
def test_whoever_collects_more_rarely_still_does(chosen: tuple[int, int, int]) -> None:
    gc.set_threshold(*chosen)
    with collected_rarely():
        assert gc.get_threshold() == chosen
