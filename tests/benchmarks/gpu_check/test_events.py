"""What is saved is plain JSON."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("typer")

from tests.benchmarks.gpu_check.rehearsal import make, results_of


def test_results_hold_plain_json(tmp_path):
    results = results_of([make("notes", lambda session: session.note("x", float("nan")))])
    (path,) = results.save([tmp_path])
    assert json.loads(path.read_text())["sections"]["probe"]["cases"]["notes"]["notes"] == {
        "x": "nan"
    }
