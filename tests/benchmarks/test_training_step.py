"""The training-step benchmark runs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")

from benchmarks.training_step import app

ROOT = Path(__file__).parents[2]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.training_step", *arguments]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)


def test_an_unknown_section_is_an_error():
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["--only", "speed"])
    assert result.exit_code == 2
    assert "not a section" in result.output


@pytest.mark.slow
def test_quick_run(tmp_path):
    path = tmp_path / "quick.csv"
    only = ["--only", "bitwise,step,mobilenet"]
    done = run(["--quick", *only, "--threads", "1", "--out", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["provider"] for r in rows} == {"inductor", "full", "dense"}
    assert {r["config"].split()[0] for r in rows} == {"gpt", "mobilenet"}
    equal = next(r for r in rows if r["mode"] == "bitwise")
    assert equal["p50"] == "1"
    assert all(r["torch"] and r["machine"] and r["time"] for r in rows)
