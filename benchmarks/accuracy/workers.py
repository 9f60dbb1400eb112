"""Train the arms of a study in worker processes, with a progress bar; Ctrl-C ends it cleanly."""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.jobs import Job
from benchmarks.accuracy.training import Arm, Run
from benchmarks.accuracy.tuned import tuned_policy
from benchmarks.process import Process


@dataclass
class Outcome:
    """How many runs were finished, what failed, and whether Ctrl-C ended it."""

    finished: int = 0
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False


Keep = Callable[[Job, Run], None]


def train(jobs: Sequence[Job], workers: int, console: Console, keep: Keep) -> Outcome:
    """Train every job; each worker has one thread and takes the next job when it is free.

    ``keep`` is called with every finished run at once. A job that fails, or whose process dies,
    leaves the others alone.
    """
    outcome = Outcome()
    try:
        _follow(jobs, workers, outcome, console, keep)
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


def _follow(
    jobs: Sequence[Job], workers: int, outcome: Outcome, console: Console, keep: Keep
) -> None:
    """Hand out the jobs and show what is reported, until all is done."""
    with (
        Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        ) as progress,
        ExitStack() as stack,
    ):
        board, todo = _Board(jobs, outcome, progress, keep), deque(jobs)
        processes: dict[Process, Job | None] = {}
        while board.left:
            idle = sum(job is None for job in processes.values())
            for _ in range(min(workers - len(processes), len(todo) - idle)):
                processes[stack.enter_context(Process(WORKER))] = None
            time.sleep(0.05)
            for process in list(processes):
                for kind, content in process.take():
                    if kind == "free":
                        processes[process] = todo.popleft() if todo else None
                        process.send(processes[process])
                    elif job := processes[process]:
                        board.show(kind, job, content)
                if process.code is not None and (job := processes.pop(process)):
                    board.show("failed", job, f"its process ended with exit code {process.code}")


class _Board:
    """A progress bar for each job and one for all; what is finished goes to ``keep``."""

    def __init__(
        self, jobs: Sequence[Job], outcome: Outcome, progress: Progress, keep: Keep
    ) -> None:
        self.left = len(jobs)
        self._outcome, self._progress, self._keep = outcome, progress, keep
        total = sum(job.updates for job in jobs)
        self._everything = progress.add_task("all", total=total, note="steps")
        self._tasks: dict[Job, Any] = {}

    def show(self, kind: str, job: Job, content: Any) -> None:
        """A worker's message."""
        progress = self._progress
        if kind == "start":
            task = progress.add_task(job.label, total=job.updates, note="compiling")
            self._tasks[job] = task
        elif kind == "step":
            steps, seed, loss = content
            note = f"seed {seed}  loss {loss:.3f}"
            progress.update(self._tasks[job], advance=steps, note=note)
            progress.advance(self._everything, steps)
        elif kind == "run":
            self._keep(job, content)
            self._outcome.finished += 1
        else:
            if job in self._tasks:
                progress.remove_task(self._tasks.pop(job))
            self.left -= 1
            progress.console.print(f"{job.label} {kind}: {content}", markup=False, highlight=False)
            if kind == "failed":
                self._outcome.failed.append(f"{job.label} failed: {content}")


def work(channel: Any) -> None:
    """A worker process: jobs until there is a None."""
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # the other cores have workers of their own
    while True:
        channel.send(("free", None))
        if (job := channel.recv()) is None:
            return
        channel.send(("start", None))
        try:
            channel.send(("ended", _train(job, channel)))
        except Exception:
            channel.send(("failed", traceback.format_exc()))


#: What a worker process runs.
WORKER: Callable[[Any], None] = work


def _train(job: Job, channel: Any) -> str:
    start = time.perf_counter()
    phases = ARMS[job.arm].schedule(job.steps, partial(tuned_policy, job))
    arm = Arm(job.training(), job.network, job.arm, phases, job.steps)
    for seed in job.seeds:
        shown = _Shown(seed, channel)
        run = arm.run(seed, shown)
        shown.flush()
        channel.send(("run", run))
    total = time.perf_counter() - start
    return f"{total:.0f} s, of which compiling {arm.compile_seconds:.0f} s"


class _Shown:
    """Forwards steps to the parent, a few times a second."""

    def __init__(self, seed: int, channel: Any) -> None:
        self._seed, self._channel = seed, channel
        self._sent, self._at, self._loss = 0, time.perf_counter(), math.nan
        self._step = 0

    def __call__(self, step: int, loss: float) -> None:
        self._step, self._loss = step, loss
        if time.perf_counter() - self._at > 0.2:
            self.flush()

    def flush(self) -> None:
        self._channel.send(("step", (self._step - self._sent, self._seed, self._loss)))
        self._sent, self._at = self._step, time.perf_counter()
