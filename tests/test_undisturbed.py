"""Collections are rare and calls at any depth map no memory; all is as it was behind it."""

from __future__ import annotations

import gc
import resource
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from nmcompile.undisturbed import undisturbed

DEPTHS, CALLS = 300, 100


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
    assert undisturbed(collections)(20_000) == 0
    assert gc.get_threshold() == (700, 10, 10)
    assert collections(20_000) > 10


@pytest.mark.parametrize("chosen", [(0, 10, 10), (10**6, 50, 500)])
def test_whoever_collects_more_rarely_still_does(chosen: tuple[int, int, int]) -> None:
    gc.set_threshold(*chosen)
    assert undisturbed(gc.get_threshold)() == chosen


def test_threads_that_overlap_leave_what_was_before() -> None:
    gc.set_threshold(700, 10, 10)
    entered, may_leave = threading.Event(), threading.Event()

    @undisturbed
    def first() -> None:
        entered.set()
        may_leave.wait()

    @undisturbed
    def second() -> None:
        may_leave.set()
        thread.join()
        assert gc.get_threshold()[0] > 700

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    second()
    assert gc.get_threshold() == (700, 10, 10)


def leaf() -> None:
    return None


def loops(depth: int) -> None:
    """Nothing, many times, at every depth from here down."""
    for _ in range(CALLS):
        leaf()
    if depth:
        loops(depth - 1)


def page_faults(function: Callable[[int], None]) -> int:
    """How often the system had to find memory for that."""
    function(DEPTHS)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    function(DEPTHS)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_calls_at_no_depth_map_memory() -> None:
    assert page_faults(undisturbed(loops)) < CALLS


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python keeps a spare chunk")
def test_without_it_they_do() -> None:
    assert page_faults(loops) > CALLS


def test_results_errors_and_names_are_those_of_the_function() -> None:
    gc.set_threshold(700, 10, 10)
    assert undisturbed(divmod)(7, 2) == (3, 1)
    assert undisturbed(loops).__name__ == "loops"
    with pytest.raises(ZeroDivisionError):
        undisturbed(divmod)(1, 0)
    assert gc.get_threshold() == (700, 10, 10)
