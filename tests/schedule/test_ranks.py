"""Ranks that meet at a switch: here threads at one store; tests/distributed has processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from nmcompile import ScheduleError, _torch
from nmcompile.schedule.ranks import check_phases, is_first, meet

RANK = threading.local()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    monkeypatch.setattr(_torch, "process_group_store", lambda: store)
    monkeypatch.setattr(_torch, "process_group_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: RANK.number)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    return store


def on_each(*calls: Callable[[], None]) -> list[str]:
    """What each rank, a thread of its own, was told."""
    said = [""] * len(calls)

    def run(rank: int) -> None:
        RANK.number = rank
        try:
            calls[rank]()
        except ScheduleError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=run, args=(r,)) for r in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_one_process_waits_for_nobody() -> None:
    meet(0, 0, 1000)
    check_phases(0, "any")
    assert is_first()


def test_all_come_to_every_switch(store: dist.Store) -> None:
    def run() -> None:
        for switch, step in enumerate((1000, 9000, 1000)):  # and back, from a checkpoint
            meet(0, switch, step)

    assert on_each(run, run, run) == ["", "", ""]


def test_who_does_not_come_is_named(store: dist.Store) -> None:
    said = on_each(lambda: meet(0, 0, 1000), lambda: None, lambda: meet(0, 0, 1000))
    assert "rank 0 switches to the phase of step 1000, and rank 1 did not within 1 s" in said[0]
    assert said[1] == ""
    assert "rank 2 switches" in said[2]


def test_who_is_at_another_step_is_named(store: dist.Store) -> None:
    said = on_each(*(lambda step=s: meet(0, 0, step) for s in (1000, 1000, 1001)))
    assert said[0] == ""
    assert "rank 1 switches after 1000 steps, and rank 2 after 1001" in said[1]
    assert "rank 2 switches after 1001 steps, and rank 0 after 1000" in said[2]


def test_other_phases_are_seen_by_who_comes_later(store: dist.Store) -> None:
    for rank, phases in enumerate(("a", "a")):
        RANK.number = rank
        check_phases(4, phases)
        assert is_first() == (rank == 0)
    RANK.number = 2
    with pytest.raises(ScheduleError, match="rank 2 and rank 0 have different schedules: b and a"):
        check_phases(4, "b")
