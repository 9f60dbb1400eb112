"""Crashes, hangs and the end of all time, with a worker that does as its cases are named."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")

from benchmarks.gpu_check import supervise
from benchmarks.gpu_check.events import Results
from tests.benchmarks.gpu_check.rehearsal import found, make


def test_unused_time_goes_to_later_sections():
    ends = supervise.deadlines(100.0, 60.0, {"a": 10, "b": 20})
    assert ends == {"a": 120.0, "b": 160.0}


FAKE_WORKER = """
import json, os, sys, time
job = json.load(open(sys.argv[1]))
file = open(job["events"], "a")
def send(kind, **event):
    print(json.dumps({"kind": kind, **event}), file=file, flush=True)
send("environment", data={"gpu": "none"})
for key in job["keys"]:
    section, case = key.split("/")
    send("start", section=section, case=case, limit=1)
    if case == "crashes":
        print("about to crash", file=sys.stderr, flush=True)
        os.abort()
    if case == "hangs":
        time.sleep(60)
    if case == "loses":
        send("end", section=section, case=case, status="error", seconds=0, error="lost")
        sys.exit(3)
    send("end", section=section, case=case, status="ok", seconds=0, error="")
"""


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(FAKE_WORKER)
    monkeypatch.setattr(supervise, "WORKER", (sys.executable, str(script)))
    return tmp_path


def supervised(folder: Path, names: str, end: float = 60, **rest: object) -> Results:
    results = Results(True, {"probe": 10})
    chosen = [make(name, limit=1.0, **rest) for name in names.split()]
    job = {"end": time.monotonic() + end}
    supervise.supervise(chosen, job, folder, results.receive, lanes=2)
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


def test_the_end_of_all_time_is_no_crash(fake_worker):
    results = supervised(fake_worker, "a hangs b", end=0.5)
    assert found(results) == {"a": "ok", "hangs": "cut off", "b": "skipped"}
    assert results.sound


def test_a_worker_that_never_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "WORKER", (sys.executable, "-c", "raise SystemExit('no GPU')"))
    results = supervised(tmp_path, "a b")
    assert found(results) == {"a": "crashed", "b": "crashed"}
    assert "no GPU" in results.sections["probe"]["cases"]["a"]["error"]
