"""What a switch of a schedule costs: ``step()`` where a phase begins, and the call that follows.

    python -m benchmarks.schedule                   # into benchmarks/results/schedule.csv
    python -m benchmarks.schedule --depth 24 --rounds 50

A small GPT (``benchmarks.gpt``) under phases of ``dense`` and ``full``, warmed up; a compilation
fails. ``first call``: how much longer the forward after a switch takes than the one after it, with
the same policy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

import nmcompile
from benchmarks import records
from benchmarks.gpt import Shape
from benchmarks.table import Row, percentiles, show, write_csv

OUT = records.RESULTS / "schedule.csv"


def measure(schedule: nmcompile.Schedule, batch: Sequence[torch.Tensor]) -> dict[str, list[float]]:
    """Microseconds of each switch, of each step without one, and of first and second calls."""
    found: dict[str, list[float]] = {"switch": [], "step": [], "first call": []}

    def timed(call: Callable[..., object], *args: object) -> float:
        start = time.perf_counter()
        call(*args)
        return (time.perf_counter() - start) * 1e6

    starts = set(schedule.phases)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(1, max(starts)):
            name = "switch" if step in starts else "step"
            found[name].append(timed(schedule.step))
            if name == "switch":
                first, second = (timed(schedule.model, *batch) for _ in range(2))
                found["first call"].append(first - second)
    return found


def build(
    shape: Shape, rounds: int, each: str | None
) -> tuple[nmcompile.Schedule, Sequence[torch.Tensor]]:
    """A warm schedule of ``rounds`` switches, two steps apart, and a batch."""
    torch.manual_seed(0)
    model, batch = shape.build()
    names = ("dense", "full")
    phases = {2 * i: names[i % 2] for i in range(rounds + 2)}
    schedule = nmcompile.Schedule(model, phases, each=each)
    schedule.warm_up(*batch)
    return schedule, batch


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rounds", type=int, default=100, help="switches")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the model")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = Shape(width=64, depth=args.depth, heads=2, context=32, batch=2)
    rows = []
    for mode, each in (("whole", None), ("each block", EACH)):
        schedule, batch = build(shape, args.rounds, each)
        for metric, times in measure(schedule, batch).items():
            rows.append(
                Row(
                    kernel="schedule",
                    provider="nmcompile",
                    mode=mode,
                    metric=f"{metric} (us)",
                    x=f"{args.depth} blocks",
                    target="<=1000" if metric == "switch" else "",
                    config=str(shape),
                    **percentiles(times),
                )
            )
    show(rows, Console())
    write_csv(args.out, rows)
    if any(row.missed for row in rows):
        raise SystemExit("a target is missed")


EACH = "blocks.*"

if __name__ == "__main__":
    main()
