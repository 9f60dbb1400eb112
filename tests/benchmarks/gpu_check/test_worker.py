"""Cases one after the other: failures, a lost device, no time left."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

from benchmarks.gpu_check.device import Rehearsal
from tests.benchmarks.gpu_check.rehearsal import found, make, results_of


def test_a_failing_case_is_recorded_and_the_others_run():
    def fail(session):
        raise ZeroDivisionError("in the case")

    results = results_of([make("bad", fail), make("good")])
    assert found(results) == {"bad": "error", "good": "ok"}
    error = results.sections["probe"]["cases"]["bad"]["error"]
    assert "Traceback" in error
    assert "ZeroDivisionError: in the case" in error
    assert not results.sound


def test_a_failing_check_makes_the_run_unsound():
    def check(session):
        session.check("right", True)
        session.check("wrong", False, "why")

    results = results_of([make("checks", check), make("good")])
    assert found(results) == {"checks": "failed", "good": "ok"}
    assert not results.sound
    assert results_of([make("good")]).sound


def test_a_lost_device_ends_the_worker(monkeypatch):
    def fail(session):
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(Rehearsal, "lost", lambda self: True)
    assert found(results_of([make("bad", fail), make("later")])) == {"bad": "error"}


def test_cases_without_time_are_skipped():
    results = results_of([make("long", seconds=90), make("short", seconds=1)])
    assert found(results) == {"long": "skipped", "short": "ok"}
    assert "needs 90 s" in results.sections["probe"]["cases"]["long"]["error"]
    assert results.sound
