"""One CSV schema for every benchmark, and the table of its rows on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import records


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
    machine: str = records.stamped("machine")
    threads: int = field(default_factory=torch.get_num_threads)
    torch: str = records.stamped("torch")
    nmcompile: str = records.stamped("nmcompile")
    commit: str = records.stamped("commit")
    time: str = records.stamped("time")

    @property
    def missed(self) -> bool:
        """Whether the figure has a target and misses it."""
        if not self.target:
            return False
        value = self.p50 if self.ratio_to_inductor is None else self.ratio_to_inductor
        bound = float(self.target[2:])
        return not (value <= bound if self.target[:2] == "<=" else value >= bound)


COLUMNS = [f.name for f in fields(Row)]


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """``p20``, ``p50`` and ``p80`` of the samples."""
    if len(samples) == 1:
        return dict.fromkeys(("p20", "p50", "p80"), samples[0])
    fifths = quantiles(samples, n=5, method="inclusive")
    return {"p20": fifths[0], "p50": median(samples), "p80": fifths[3]}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` in the place of those that the file has of the same mode and threads."""
    records.replace(path, map(asdict, rows), ("mode", "threads"), COLUMNS)


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
