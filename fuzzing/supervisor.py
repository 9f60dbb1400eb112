"""A run in a process of its own: PyTorch can die of a network, and the run goes on after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.process import Process
from fuzzing.campaign import Summary, record_dead, run_seed, seeds


@dataclass(frozen=True)
class Run:
    """What a worker is asked for."""

    count: int | None
    minutes: float | None
    compiled_share: float
    seed: int
    finds: Path
    shrink_seconds: float


def supervise(run: Run, console: Console) -> None:
    """Work in a process of its own, and start another where one dies (a segmentation fault)."""
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("networks", total=run.count)

        def show(networks: int, line: str | None) -> None:
            if line:
                bar.console.print(line, markup=False, highlight=False)
            bar.update(task, completed=networks)

        while (code := _once(run, show)) != 0:
            if code > 0:
                raise RuntimeError("the worker failed outside of any case; its traceback is above")
            summary = Summary.at(run.finds, run.seed, run.compiled_share)
            line = record_dead(summary, run.finds, code)
            show(summary.networks, line)
            if run.minutes:
                left = run.minutes - (time.monotonic() - started) / 60
                run, started = replace(run, minutes=max(left, 1e-3)), time.monotonic()


def _once(run: Run, show: Callable[[int, str | None], None]) -> int:
    """One worker process; its exit status."""
    with Process(WORKER, run) as worker:
        while worker.code is None:
            for networks, line in worker.take(0.2):
                show(networks, line)
    return worker.code


def work(channel: Any, run: Run) -> None:
    """A worker process: tells how many networks are done, and what was found."""
    torch.set_num_threads(1)
    summary = Summary.at(run.finds, run.seed, run.compiled_share)
    channel.send((summary.networks, None))
    for number in seeds(summary, run.count, run.minutes):
        line = run_seed(summary, number, run.finds, run.shrink_seconds)
        channel.send((summary.networks, line))


#: What a worker process runs.
WORKER: Callable[[Any, Run], None] = work
