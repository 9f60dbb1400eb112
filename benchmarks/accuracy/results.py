"""The rows of a study: one per run, its curves, and what pruning did to its gradients.

Each run is written when it is finished, so that an interrupted study goes on where it was, and
several processes may share a study by its arms.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.studies import Metric, Study
from benchmarks.accuracy.training import Run

Row = dict[str, Any]
Key = tuple[str, str, int]

_ORIGIN = ("machine", "python", "torch", "nmcompile", "commit", "time")
_TEXT = ("network", "arm", "setting", "policy", "data", "layer", *_ORIGIN)
_KEY = ("network", "arm", "seed")


class Store:
    """The files of a study in a folder: accuracy_<study>.csv, _curves.csv and _gradients.csv."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = folder, study

    def path(self, ending: str) -> Path:
        return self.folder / f"accuracy_{self.study.name}{ending}"

    def rows(self, ending: str = ".csv") -> list[Row]:
        """In the order of the study; an empty cell is None."""
        rows = [
            {k: _value(k, v) for k, v in row.items()} for row in records.read(self.path(ending))
        ]
        return sorted(rows, key=_place(self.study))

    def keep(self, run: Run, about: Mapping[str, str]) -> None:
        """Write a finished run in the place of an earlier one; ``about`` are further columns."""
        metric = self.study.metric
        with _alone(self.folder):
            # The run itself comes last: where it is there, so is all that belongs to it.
            self._replace("_curves.csv", curve_rows(run, metric))
            self._replace("_gradients.csv", gradient_rows(run))
            self._replace(".csv", [run_row(run, metric, about)])

    def drop(self, keys: Iterable[Key]) -> None:
        """Remove runs."""
        unwanted = set(keys)
        records.write(self.path(".csv"), [r for r in self.rows() if key_of(r) not in unwanted])

    def _replace(self, ending: str, new: Sequence[Row]) -> None:
        if new:
            rows = records.merged(self.rows(ending), new, _KEY)
            records.write(self.path(ending), sorted(rows, key=_place(self.study)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Another process that keeps runs in this folder waits."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def key_of(row: Mapping[str, Any]) -> Key:
    """(network, arm, seed) of a row."""
    return row["network"], row["arm"], int(row["seed"])


def _place(study: Study) -> Any:
    """What rows are sorted by: the study's order; what it no longer knows comes last."""
    networks, arms = list(study.networks), list(ARMS)

    def place(row: Mapping[str, Any]) -> tuple[int, int, int]:
        network, arm, seed = key_of(row)
        return (
            networks.index(network) if network in networks else len(networks),
            arms.index(arm) if arm in arms else len(arms),
            seed,
        )

    return place


def _begin(run: Run) -> Row:
    return {"network": run.network, "arm": run.arm, "seed": run.seed}


def run_row(run: Run, metric: Metric, about: Mapping[str, str]) -> Row:
    """A run, with the machine and the versions."""
    masked, plain = run.validation, run.without_masks
    return {
        **_begin(run),
        "steps": run.steps,
        "train_loss": run.train_loss,
        "validation_loss": masked.loss,
        metric.column: metric.of(masked.loss, masked.accuracy),
        f"dense_forward_{metric.column}": metric.of(plain.loss, plain.accuracy),
        "pruned_flops_share": run.pruned_share,
        "skipped_flops_share": run.skipped_share,
        "seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
        **about,
        **records.origin(*_ORIGIN),
    }


def curve_rows(run: Run, metric: Metric) -> list[Row]:
    """A row per recorded step; metric and logits are empty where there was no validation."""
    return [
        {
            **_begin(run),
            "step": point.step,
            "train_loss": point.train_loss,
            metric.column: at and metric.of(at.loss, at.accuracy),
            "logit_mean": at and at.logit_mean,
        }
        for point in run.curve
        for at in [point.validation]
    ]


def gradient_rows(run: Run) -> list[Row]:
    """A row per layer and step at which pruned gradients were compared with dense ones."""
    return [
        {**_begin(run), "step": point.step, **asdict(signal)}
        for point in run.curve
        for signal in point.signals
    ]


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
