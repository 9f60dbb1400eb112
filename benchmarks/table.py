"""One CSV schema for every benchmark, and the table of its rows on the terminal."""

from __future__ import annotations

import csv
import functools
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def machine() -> str:
    """The CPU's model, with its family and model numbers and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {key.strip(): value.strip() for key, _, value in (n.partition(":") for n in lines)}
    name = " ".join(found.get("model name", "unknown CPU").split())
    numbers = f"family {found.get('cpu family')} model {found.get('model')}"
    return f"{name} {numbers} {os.cpu_count()} cores"


@functools.cache
def commit() -> str:
    """The commit of the working tree, with a ``+`` when it has changes; empty without git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return ""
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. ``p20``, ``p50`` and ``p80`` are in the unit that ``metric`` names."""

    kernel: str
    provider: str
    mode: str
    metric: str
    x: str = ""
    p20: float
    p50: float
    p80: float
    ratio_to_inductor: float | None = None
    target: str = ""
    prediction: float | None = None
    config: str = ""
    machine: str = field(default_factory=machine)
    threads: int = field(default_factory=torch.get_num_threads)
    torch: str = field(default_factory=lambda: version("torch"))
    nmcompile: str = field(default_factory=lambda: version("nmcompile"))
    commit: str = field(default_factory=commit)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def missed(self) -> bool:
        """Whether the figure has a target and misses it."""
        if not self.target:
            return False
        value = self.p50 if self.ratio_to_inductor is None else self.ratio_to_inductor
        bound = float(self.target[2:])
        return not (value <= bound if self.target[:2] == "<=" else value >= bound)


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """``p20``, ``p50`` and ``p80`` of the samples."""
    if len(samples) == 1:
        return dict.fromkeys(("p20", "p50", "p80"), samples[0])
    fifths = quantiles(samples, n=5, method="inclusive")
    return {"p20": fifths[0], "p50": median(samples), "p80": fifths[3]}


def write_csv(path: Path, rows: Iterable[Row], modes: Iterable[str]) -> None:
    """Write ``rows``; rows that the file has of other modes or thread counts stay."""
    names = [f.name for f in fields(Row)]
    replaced = {(mode, str(torch.get_num_threads())) for mode in modes}
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [r for r in csv.DictReader(file) if (r["mode"], r["threads"]) not in replaced]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        for row in rows:
            values = {name: getattr(row, name) for name in names}
            writer.writerow({k: _short(v) for k, v in values.items()})


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table; a missed target is red."""
    table = Table(title=rows[0].config if rows else None, title_justify="left", pad_edge=False)
    table.add_column("mode")
    for column in ("provider", "metric", "x"):
        table.add_column(column, no_wrap=True)
    for column in ("p20", "p50", "p80", "ratio", "target", "predicted"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        ratio = "" if row.ratio_to_inductor is None else f"{row.ratio_to_inductor:.3f}"
        style = "" if not row.target else ("red" if row.missed else "green")
        table.add_row(
            *(row.mode, row.provider, row.metric, row.x),
            *(f"{value:.4g}" for value in (row.p20, row.p50, row.p80)),
            *(ratio, row.target, "" if row.prediction is None else f"{row.prediction:.2f}"),
            style=style,
        )
    console.print(table)
