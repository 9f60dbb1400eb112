"""What must hold on the null GPU: names, limits, and what was measured beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

#: By name: the most that may be measured. A ratio of memory is to the same layer's dense step.
LIMITS = {
    "calls that a GPU refuses": 0,
    "cases that end in an error": 0,
    "kernels that spill": 0,
    "inputs wider than the operand": 0,
    "host waits in a step": 0,
    "peak memory of a step over dense, full": 1.05,
    "peak memory of a step over dense, full-exact": 0.95,
    "launches per linear layer beyond dense, weights": 3,
    "launches of a mask": 2,
    "host waits of a mask": 0,
    "launches elsewhere": 0,
    "plans made in a step": 0,
    "CPU time of the first steps over dense": 1.5,
}


@dataclass(frozen=True)
class Measured:
    """A figure, of which expectation, where, and what explains it."""

    name: str
    where: str
    value: float
    detail: str = ""

    @property
    def limit(self) -> float:
        """The most that is allowed."""
        return LIMITS[self.name]

    @property
    def holds(self) -> bool:
        """Whether it is within the limit; a NaN is not."""
        return self.value <= self.limit


def count(name: str, where: str, found: Iterable[str]) -> Measured:
    """How many there are; the first of them as an explanation."""
    lines = list(found)
    return Measured(name, where, len(lines), "; ".join(lines[:3]))


def show(found: Iterable[Measured], console: Console) -> bool:
    """Print a table, what fails in red with its detail; whether all holds."""
    table = Table(title="null GPU", title_justify="left", pad_edge=False)
    for column in ("expectation", "where", "measured", "at most", ""):
        table.add_column(column, justify="right" if column in ("measured", "at most") else "left")
    rows = list(found)
    for row in rows:
        result, style = ("holds", "") if row.holds else ("FAILS", "red")
        figures = f"{row.value:.4g}", f"{row.limit:g}"
        table.add_row(row.name, row.where, *figures, result, style=style)
    console.print(table)
    for row in rows:
        if not row.holds and row.detail:
            console.print(f"{row.name}, {row.where}: {row.detail}", markup=False, style="red")
    return all(row.holds for row in rows)
