"""A run over many seeds: counts, finds, and a summary that is always written."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.process import Process
from fuzzing.case import Case, Find, Tally
from fuzzing.checks import check
from fuzzing.generate import generate
from fuzzing.script import write_script
from fuzzing.shrink import shrink


@dataclass
class Summary:
    """What a run has done so far; kept beside its finds, so that it can be resumed."""

    first_seed: int
    next_seed: int
    compiled_share: float
    networks: int = 0
    compiled: int = 0
    products: int = 0
    pruned_products: int = 0
    checks: dict[str, int] = field(default_factory=dict)
    finds: dict[str, str] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def at(cls, folder: Path, seed: int, compiled_share: float) -> Summary:
        """The summary in ``folder`` if it is of the same run, else a new one."""
        path = folder / "summary.json"
        if path.exists():
            old = cls(**json.loads(path.read_text()))
            if (old.first_seed, old.compiled_share) == (seed, compiled_share):
                return old
        return cls(seed, seed, compiled_share)

    def save(self, folder: Path) -> None:
        records.save(folder / "summary.json", json.dumps(asdict(self), indent=2))

    def add(self, case: Case, tally: Tally) -> None:
        self.networks += 1
        self.compiled += case.compiled
        self.products += tally.products
        self.pruned_products += tally.pruned
        self.checks = dict(Counter(self.checks) + tally.checks)

    def row(self) -> dict[str, Any]:
        """The run as a row of ``benchmarks/results/fuzz.csv``."""
        return {
            "seeds": f"{self.first_seed}-{self.next_seed - 1}",
            "networks": self.networks,
            "compiled": self.compiled,
            "products": self.products,
            "pruned_products": self.pruned_products,
            "checks": "; ".join(f"{k}: {v}" for k, v in sorted(self.checks.items())),
            "finds": len(self.finds),
            "upstream_finds": len(self.upstream),
            "seconds": round(self.seconds),
            **records.origin("machine", "torch", "commit", "time"),
        }


def seeds(summary: Summary, count: int | None, minutes: float | None) -> Iterator[int]:
    """The seeds that are left of ``count``, or as many as fit into ``minutes``."""
    end = time.monotonic() + 60 * minutes if minutes else None
    while count is None or summary.next_seed < summary.first_seed + count:
        if end is not None and time.monotonic() > end:
            return
        yield summary.next_seed


def run_seed(summary: Summary, seed: int, folder: Path, shrink_seconds: float) -> str | None:
    """Check one seed's case, shrink and write what fails; a line for the terminal if it does."""
    start = time.monotonic()
    line = None
    case = Case.of(seed, summary.compiled_share)
    tally = Tally()
    try:
        tally = check(case)
    except Exception as error:
        line = _record(summary, case, error, folder, shrink_seconds)
    summary.add(case, tally)
    summary.next_seed = seed + 1
    summary.seconds += time.monotonic() - start
    summary.save(folder)
    if seed % 20 == 0:
        gc.collect()
    return line


def _record(
    summary: Summary, case: Case, error: Exception, folder: Path, shrink_seconds: float
) -> str:
    upstream = isinstance(error, Find) and error.upstream
    message = str(error) if isinstance(error, Find) else f"error: {traceback.format_exc()}"
    seconds = shrink_seconds / 4 if upstream else shrink_seconds
    path = write_script(shrink(case, seconds), message, folder / ("upstream" if upstream else ""))
    (summary.upstream if upstream else summary.finds)[str(case.seed)] = message[:2000]
    return f"{'upstream' if upstream else 'FIND'} {path}: {message[:400]}"


def record_dead(summary: Summary, folder: Path, exitcode: int) -> str:
    """Note the seed at which a process died without an exception, and step over it."""
    seed = summary.next_seed
    with Process(_generate, seed) as eager:
        while eager.code is None:
            eager.take(0.1)
    upstream = eager.code != 0  # PyTorch dies while the network is made, in eager mode
    (summary.upstream if upstream else summary.finds)[str(seed)] = f"died: exit code {exitcode}"
    summary.networks += 1
    summary.next_seed = seed + 1
    summary.save(folder)
    return f"{'upstream' if upstream else 'FIND'}: the process died at seed {seed} ({exitcode})"


def _generate(channel: Any, seed: int) -> None:
    generate(seed)
