"""Crashes, hangs and the end of all time, with a worker that does as its cases are named."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")

from benchmarks.gpu_check import supervise
from benchmarks.gpu_check.events import Results
from tests.benchmarks.gpu_check import fakes
from tests.benchmarks.gpu_check.rehearsal import found, make


def test_unused_time_goes_to_later_sections():
    ends = supervise.deadlines(100.0, 60.0, {"a": 10, "b": 20})
    assert ends == {"a": 120.0, "b": 160.0}


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "WORKER", fakes.obey)
    return tmp_path


def supervised(
    folder: Path,
    names: str,
    end: float = 60,
    limit: float = 1,
    later: str = "",
    patience: float = 1.0,
    caches: str = "",
    **rest: object,
) -> Results:
    """Run cases of one section, whose time is over after ``end`` seconds, and ``later`` ones."""
    results = Results(True, {"probe": 10, "kernels": 10})
    chosen = [make(name, limit=limit, **rest) for name in names.split()]
    chosen += [make(name, limit=limit, section="kernels") for name in later.split()]
    now = time.monotonic()
    job = {"deadlines": {"probe": now + end, "kernels": now + 60}, "end": now + 60}
    job |= {"patience": patience, **({"caches": caches} if caches else {})}
    supervise.supervise(chosen, job, folder, folder / "caches", results.receive, lanes=2)
    return results


@pytest.mark.parametrize("parallel", [False, True])
def test_crashes_and_hangs_cost_one_case(fake_worker, parallel):
    results = supervised(fake_worker, "a crashes b loses c hangs d e", parallel=parallel)
    ok = dict.fromkeys("abcde", "ok")
    assert found(results) == {**ok, "crashes": "crashed", "loses": "error", "hangs": "crashed"}
    errors = {name: case["error"] for _, name, case in results.cases()}
    assert "about to crash" in errors["crashes"]
    assert "status -6" in errors["crashes"]
    assert "killed after 1 s" in errors["hangs"]
    assert not results.sound


@pytest.mark.parametrize("parallel", [False, True])
def test_what_hangs_at_its_sections_end_costs_no_other_section(fake_worker, parallel):
    start = time.monotonic()
    names, rest = "a hangs b", {"end": 3, "limit": 50, "parallel": parallel}
    results = supervised(fake_worker, names, later="c d", **rest)
    # Side by side, b is in another lane than what hangs.
    own = {"a": "ok", "hangs": "cut off", "b": "skipped"}
    if parallel:
        own["b"] = "skipped" if found(results)["b"] == "skipped" else "ok"
    assert found(results) == {**own, "c": "ok", "d": "ok"}
    assert "its section's time is over" in results.sections["probe"]["cases"]["hangs"]["error"]
    assert results.sound
    assert time.monotonic() < start + 30


def test_a_slow_machine_is_given_patience(fake_worker):
    start = time.monotonic()
    results = supervised(fake_worker, "hangs", patience=4.0)
    assert found(results) == {"hangs": "crashed"}
    assert 4 < time.monotonic() - start < 30


@pytest.mark.parametrize("brought", [False, True])
def test_workers_share_the_caches_that_they_are_given(fake_worker, monkeypatch, brought):
    """What was brought along is found by a process that compiles in itself, and by no other."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "8")
    caches = "2 kernels brought along" if brought else ""
    results = supervised(fake_worker, "tells_caches", caches=caches)
    notes = results.sections["probe"]["cases"]["tells_caches"]["notes"]
    assert notes == {
        "TRITON_CACHE_DIR": str(fake_worker / "caches" / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(fake_worker / "caches" / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1" if brought else "8",
    }


def test_a_worker_that_never_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "WORKER", fakes.refuse)
    results = supervised(tmp_path, "a b")
    assert found(results) == {"a": "crashed", "b": "crashed"}
    assert "no GPU" in results.sections["probe"]["cases"]["a"]["error"]


def test_ctrl_c_ends_every_lane(fake_worker):
    threads = threading.active_count()
    clock = threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    clock.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        supervised(fake_worker, "hangs a", limit=50, parallel=True)
    while threading.active_count() > threads:
        assert time.monotonic() < start + 20, "a lane goes on"
        time.sleep(0.05)
