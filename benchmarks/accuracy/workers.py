"""Train the arms of a study in worker processes, with a progress bar; Ctrl-C ends it cleanly."""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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

from benchmarks.accuracy.studies import ARMS, STUDIES
from benchmarks.accuracy.training import Arm, Run
from benchmarks.process import Process


@dataclass(frozen=True)
class Job:
    """One arm of one network, for all seeds; ``steps`` None is the study's own number."""

    study: str
    network: str
    arm: str
    seeds: tuple[int, ...]
    steps: int | None = None

    @property
    def label(self) -> str:
        return f"{self.network} {self.arm}"

    @property
    def updates(self) -> int:
        return len(self.seeds) * (self.steps or STUDIES[self.study].networks[self.network].steps)


@dataclass
class Outcome:
    """The finished runs, and why there are not more of them (None: all are there)."""

    runs: list[Run] = field(default_factory=list)
    stopped: str | None = None


def train(jobs: Sequence[Job], workers: int, console: Console) -> Outcome:
    """Train every job; each worker has one thread and takes the next job when it is free."""
    outcome = Outcome()
    try:
        with ExitStack() as stack:
            count = min(workers, len(jobs))
            processes = [stack.enter_context(Process(WORKER)) for _ in range(count)]
            _follow(jobs, processes, outcome, console)
    except KeyboardInterrupt:
        outcome.stopped = "interrupted"
    return outcome


def _follow(
    jobs: Sequence[Job], processes: Sequence[Process], outcome: Outcome, console: Console
) -> None:
    """Hand out the jobs and show what is reported, until all is done or one has failed."""
    with Progress(
        TextColumn("{task.description}", justify="left"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        board, todo = _Board(jobs, outcome, progress), deque(jobs)
        while board.left and outcome.stopped is None:
            time.sleep(0.05)
            for process in processes:
                for kind, job, content in process.take():
                    if kind == "free":
                        process.send(todo.popleft() if todo else None)
                    else:
                        board.show(kind, job, content)
                if process.code and outcome.stopped is None:
                    outcome.stopped = f"a worker process ended with exit code {process.code}"


class _Board:
    """A progress bar for each job and one for all; what is finished goes to ``outcome``."""

    def __init__(self, jobs: Sequence[Job], outcome: Outcome, progress: Progress) -> None:
        self.left = len(jobs)
        self._outcome, self._progress = outcome, progress
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
            self._outcome.runs.append(content)
        elif kind == "end":
            progress.remove_task(self._tasks.pop(job))
            progress.console.print(f"{job.label}: {content}", highlight=False)
            self.left -= 1
        else:
            self._outcome.stopped = f"{job.label} failed:\n{content}"


def work(channel: Any) -> None:
    """A worker process: jobs until there is a None."""
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # the other cores have workers of their own
    while True:
        channel.send(("free", None, None))
        if (job := channel.recv()) is None:
            return
        channel.send(("start", job, None))
        try:
            channel.send(("end", job, _train(job, channel)))
        except Exception:
            channel.send(("failed", job, traceback.format_exc()))
            return


#: What a worker process runs.
WORKER: Callable[[Any], None] = work


def _train(job: Job, channel: Any) -> str:
    start = time.perf_counter()
    arm = Arm(STUDIES[job.study].networks[job.network], job.network, job.arm, ARMS[job.arm].policy)
    for seed in job.seeds:
        shown = _Shown(job, seed, channel)
        run = arm.run(seed, job.steps, shown)
        shown.flush()
        channel.send(("run", job, run))
    total = time.perf_counter() - start
    return f"{total:.0f} s, of which compiling {arm.compile_seconds:.0f} s"


class _Shown:
    """Forwards steps to the parent, a few times a second."""

    def __init__(self, job: Job, seed: int, channel: Any) -> None:
        self._job, self._seed, self._channel = job, seed, channel
        self._sent, self._at, self._loss = 0, time.perf_counter(), math.nan
        self._step = 0

    def __call__(self, step: int, loss: float) -> None:
        self._step, self._loss = step, loss
        if time.perf_counter() - self._at > 0.2:
            self.flush()

    def flush(self) -> None:
        content = (self._step - self._sent, self._seed, self._loss)
        self._channel.send(("step", self._job, content))
        self._sent, self._at = self._step, time.perf_counter()
