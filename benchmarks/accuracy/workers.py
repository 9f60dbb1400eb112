"""Train the arms of a study in worker processes, with a progress bar; Ctrl-C ends it cleanly."""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import signal
import time
import traceback
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


def train(jobs: list[Job], workers: int, console: Console) -> Outcome:
    """Train every job; each worker has one thread and takes the next job when it is free."""
    context = multiprocessing.get_context("spawn")
    todo, messages = context.Queue(), context.Queue()
    for job in jobs:
        todo.put(job)
    count = min(workers, len(jobs))
    processes = [
        context.Process(target=_work, args=(todo, messages), daemon=False) for _ in range(count)
    ]
    outcome = Outcome()
    try:
        for process in processes:
            todo.put(None)
            process.start()
        _follow(jobs, processes, messages, outcome, console)
    except KeyboardInterrupt:
        outcome.stopped = "interrupted"
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()  # whatever it still does, nobody waits for it
                process.join()
        todo.cancel_join_thread()
    return outcome


def _follow(
    jobs: list[Job], processes: list[Any], messages: Any, outcome: Outcome, console: Console
) -> None:
    """Show what the workers report until all is done or one has failed."""
    with Progress(
        TextColumn("{task.description}", justify="left"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        everything = progress.add_task("all", total=sum(job.updates for job in jobs), note="steps")
        tasks: dict[Job, Any] = {}
        left = len(jobs)
        while left:
            try:
                kind, job, content = messages.get(timeout=1)
            except queue.Empty:
                dead = [p for p in processes if p.exitcode]
                if dead:
                    outcome.stopped = f"a worker process ended with exit code {dead[0].exitcode}"
                    return
                continue
            if kind == "start":
                tasks[job] = progress.add_task(job.label, total=job.updates, note="compiling")
            elif kind == "step":
                steps, seed, loss = content
                progress.update(tasks[job], advance=steps, note=f"seed {seed}  loss {loss:.3f}")
                progress.advance(everything, steps)
            elif kind == "run":
                outcome.runs.append(content)
            elif kind == "end":
                progress.remove_task(tasks.pop(job))
                progress.console.print(f"{job.label}: {content}", highlight=False)
                left -= 1
            else:
                outcome.stopped = f"{job.label} failed:\n{content}"
                return


def _work(todo: Any, messages: Any) -> None:
    """A worker process: jobs until there is a None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # the other cores have workers of their own
    while (job := todo.get()) is not None:
        messages.put(("start", job, None))
        try:
            messages.put(("end", job, _train(job, messages)))
        except Exception:
            messages.put(("failed", job, traceback.format_exc()))
            return


def _train(job: Job, messages: Any) -> str:
    start = time.perf_counter()
    arm = Arm(STUDIES[job.study].networks[job.network], job.network, job.arm, ARMS[job.arm].policy)
    for seed in job.seeds:
        shown = _Shown(job, seed, messages)
        run = arm.run(seed, job.steps, shown)
        shown.flush()
        messages.put(("run", job, run))
    total = time.perf_counter() - start
    return f"{total:.0f} s, of which compiling {arm.compile_seconds:.0f} s"


class _Shown:
    """Forwards steps to the parent, a few times a second."""

    def __init__(self, job: Job, seed: int, messages: Any) -> None:
        self._job, self._seed, self._messages = job, seed, messages
        self._sent, self._at, self._loss = 0, time.perf_counter(), math.nan
        self._step = 0

    def __call__(self, step: int, loss: float) -> None:
        self._step, self._loss = step, loss
        if time.perf_counter() - self._at > 0.2:
            if not multiprocessing.parent_process().is_alive():
                os._exit(1)  # killed: nobody is left to report to
            self.flush()

    def flush(self) -> None:
        content = (self._step - self._sent, self._seed, self._loss)
        self._messages.put(("step", self._job, content))
        self._sent, self._at = self._step, time.perf_counter()
