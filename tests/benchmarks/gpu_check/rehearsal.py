"""The command rehearsed on the CPU, and cases of a test's own."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.gpu_check.cli import app
from benchmarks.gpu_check.device import Rehearsal
from benchmarks.gpu_check.events import Case, Results
from benchmarks.gpu_check.targets import TARGETS
from benchmarks.gpu_check.worker import run_cases


def rehearse(out: Path, *arguments: str, code: int = 0) -> dict:
    """Run the command; the JSON that it wrote."""
    given = ["--rehearse", "--minutes", "9", "--out", str(out), *arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == code, result.output
    return json.loads((out / "gpu_check_rehearsal.json").read_text())


def statuses(data: dict) -> dict[str, str]:
    return {
        f"{section}/{name}": case["status"]
        for section, record in data["sections"].items()
        for name, case in record["cases"].items()
    }


def assert_targets_are_measured(folder: Path, mode: str) -> None:
    """Each target names a provider, metric and configuration that the rehearsal wrote."""
    with (folder / "gpu_check_rehearsal.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["p20"]) <= float(row["p50"]) <= float(row["p80"]) for row in rows)
    assert all("rehearsal" in row["machine"] and not row["target"] for row in rows)
    written = {(row["provider"], row["metric"], row["config"]) for row in rows}
    wanted = {(t.provider, t.metric, t.config) for t in TARGETS if t.mode == mode}
    assert wanted
    assert wanted <= written


def make(name: str, run=lambda session: None, section: str = "probe", **rest: object) -> Case:
    return Case(section, name, run, **rest)


def results_of(chosen: list[Case], left: float = 60) -> Results:
    results = Results(True, {"probe": 10})
    deadlines = {"probe": time.monotonic() + left}
    run_cases(chosen, Rehearsal(), deadlines, results.receive, "")
    return results


def found(results: Results) -> dict[str, str]:
    return {name: case["status"] for _, name, case in results.cases()}
