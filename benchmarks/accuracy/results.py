"""The rows of a study: one per run, and its curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.accuracy.studies import Metric
from benchmarks.accuracy.training import Run

Row = dict[str, Any]

_ORIGIN = ("machine", "python", "torch", "nmcompile", "commit", "time")
_TEXT = ("network", "arm", *_ORIGIN)


def run_rows(runs: Iterable[Run], metric: Metric) -> list[Row]:
    """A row per run, with the machine and the versions."""
    where = records.origin(*_ORIGIN)
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


def read_csv(path: Path) -> list[Row]:
    """The rows of a file; an empty cell is None."""
    return [{k: _value(k, v) for k, v in row.items()} for row in records.read(path)]


def _value(column: str, text: str) -> Any:
    if column in _TEXT:
        return text
    return float(text) if text else None


def arms_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Network -> its arms, in the order of the rows."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row["network"], {})[row["arm"]] = None
    return {network: list(arms) for network, arms in found.items()}
