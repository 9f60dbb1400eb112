"""The CSV files of a study: one row per run, and its curves. Every file appears whole or not."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.studies import Metric
from benchmarks.accuracy.training import Run

Row = dict[str, Any]

_TEXT = ("network", "arm", "cpu", "python", "torch", "nmcompile", "commit")


def run_rows(runs: Iterable[Run], metric: Metric) -> list[Row]:
    """A row per run, with the machine and the versions."""
    where = machine()
    return [
        {
            "network": run.network,
            "arm": run.arm,
            "seed": run.seed,
            "steps": run.steps,
            "train_loss": run.train_loss,
            "validation_loss": run.validation_loss,
            metric.column: metric.of(run.validation_loss, run.accuracy),
            f"dense_forward_{metric.column}": metric.of(
                run.dense_validation_loss, run.dense_accuracy
            ),
            "pruned_flops_share": run.pruned_share,
            "skipped_flops_share": run.skipped_share,
            "seconds": run.seconds,
            "compile_seconds": run.compile_seconds,
            **where,
        }
        for run in runs
    ]


def curve_rows(runs: Iterable[Run], metric: Metric) -> list[Row]:
    """A row per run and recorded step; the metric is empty where there was no validation."""
    return [
        {
            "network": run.network,
            "arm": run.arm,
            "seed": run.seed,
            "step": step,
            "train_loss": train_loss,
            metric.column: None if loss is None else metric.of(loss, accuracy or 0.0),
        }
        for run in runs
        for step, train_loss, loss, accuracy in run.curve
    ]


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nmcompile": importlib.metadata.version("nmcompile"),
        "commit": _commit(),
    }


def write_csv(path: Path, rows: list[Row]) -> None:
    """Numbers with six significant digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write(path, out.getvalue().encode())


def read_csv(path: Path) -> list[Row]:
    """The rows of a file of :func:`write_csv`; an empty cell is None."""
    with path.open(newline="") as file:
        return [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]


def write(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _value(column: str, text: str) -> Any:
    if column in _TEXT:
        return text
    return float(text) if text else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    def git(*words: str) -> str:
        found = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.strip()

    try:
        dirty = "+dirty" if git("status", "--porcelain") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def arms_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Network -> its arms, in the order of the rows."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row["network"], {})[row["arm"]] = None
    return {network: list(arms) for network, arms in found.items()}
