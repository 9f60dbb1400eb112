"""A run in a process of its own: PyTorch can die of a network, and the run goes on after it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
    while True:
        worker = get_context("spawn").Process(target=_work, args=(run,))
        worker.start()
        try:
            worker.join()
        finally:
            worker.terminate()
        if worker.exitcode == 0:
            return
        if worker.exitcode is None or worker.exitcode > 0:
            raise RuntimeError("the worker failed outside of any case; its traceback is above")
        summary = Summary.at(run.finds, run.seed, run.compiled_share)
        line = record_dead(summary, run.finds, worker.exitcode)
        console.print(line, markup=False, highlight=False)
        if run.minutes:
            left = run.minutes - (time.monotonic() - started) / 60
            run, started = replace(run, minutes=max(left, 1e-3)), time.monotonic()


def _work(run: Run) -> None:
    torch.set_num_threads(1)
    console = Console()
    summary = Summary.at(run.finds, run.seed, run.compiled_share)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("networks", total=run.count, completed=summary.networks)
        for number in seeds(summary, run.count, run.minutes):
            if line := run_seed(summary, number, run.finds, run.shrink_seconds):
                console.print(line, markup=False, highlight=False)
            bar.update(task, completed=summary.networks)
