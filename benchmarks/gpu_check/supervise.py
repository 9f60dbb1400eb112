"""Worker processes: a case that hangs is killed, one that crashes does not end the others.

Cases that measure no time run first, side by side in several workers. All others run in one, which
is started anew, without the case that broke it, after a crash.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.events import Case, Event
from benchmarks.gpu_check.worker import work
from benchmarks.process import Process

#: What a worker process runs.
WORKER: Callable[..., None] = work
_RESTARTS = 6
_START_LIMIT = 120.0  # seconds until a worker's first event


def deadlines(start: float, total: float, budgets: dict[str, float]) -> dict[str, float]:
    """When each section must end; what one leaves of its budget goes to those after it.

    Args:
        start: now, in monotonic seconds.
        total: seconds for everything; the budgets are scaled to fill it.
        budgets: seconds of each section, in order.
    """
    scale = total / sum(budgets.values())
    ends, end = {}, start
    for name, budget in budgets.items():
        end += budget * scale
        ends[name] = end
    return ends


@dataclass
class _Lane:
    """One worker process at a time, over a list of cases."""

    cases: list[Case]
    job: dict[str, Any]
    folder: Path
    receive: Callable[[Event], None]
    env: dict[str, str]
    running: Case | None = None
    started: float = 0.0
    killed: str = ""
    done: set[str] = field(default_factory=set)
    log: Path = Path()

    def run(self) -> None:
        """Run all cases; never raises for what a worker does."""
        for attempt in range(_RESTARTS):
            left = [case for case in self.cases if case.key not in self.done]
            if not left:
                return
            if time.monotonic() > self.job["end"]:
                self._give_up(left, "skipped", "the time for everything is over")
                return
            code = self._run_once(left, f"{self.folder.name}-{id(self)}-{attempt}")
            if code == 0:
                return
            tail = self.log.read_text(errors="replace")[-4000:]
            cause = self.killed or f"the worker ended with status {code}"
            if self.running is None and not self.done and code != 3:
                self._give_up(left, "crashed", f"{tail}\n{cause} before its first case")
                return
            if self.running is not None:
                seconds = time.monotonic() - self.started
                over = time.monotonic() > self.job["end"]
                status = "cut off" if over else "crashed"
                self._end(self.running, status, seconds, f"{tail}\n{cause}")
        left = [case for case in self.cases if case.key not in self.done]
        self._give_up(left, "crashed", f"given up after {_RESTARTS} workers")

    def _give_up(self, cases: Sequence[Case], status: str, why: str) -> None:
        for case in cases:
            self._end(case, status, 0.0, why)

    def _end(self, case: Case, status: str, seconds: float, error: str) -> None:
        event = {"section": case.section, "case": case.name, "status": status}
        self._take({"kind": "end", **event, "seconds": seconds, "error": error})

    def _run_once(self, cases: list[Case], name: str) -> int:
        self.log = self.folder / f"{name}.log"
        self.running, self.killed, self.started = None, "", time.monotonic()
        job = {**self.job, "keys": [case.key for case in cases]}
        with Process(WORKER, job, env=self.env, log=self.log) as process:
            while process.code is None:
                for event in process.take(0.05):
                    self._take(event)
                if not self.killed and process.code is None and (late := self._overdue()):
                    self.killed = late
                    process.kill()
        # Killed at the last moment, yet all had ended: nothing is left to do.
        return process.code

    def _take(self, event: Event) -> None:
        if event["kind"] == "start":
            key = f"{event['section']}/{event['case']}"
            self.running = next(case for case in self.cases if case.key == key)
            self.started = time.monotonic()
        elif event["kind"] == "end":
            self.done.add(f"{event['section']}/{event['case']}")
            self.running, self.started = None, time.monotonic()
        self.receive(event)

    def _overdue(self) -> str:
        taken = time.monotonic() - self.started
        limit = self.running.limit if self.running else _START_LIMIT
        if taken > limit:
            return f"killed after {taken:.0f} s"
        if time.monotonic() > self.job["end"]:
            return "killed: the time for everything is over"
        return ""


def supervise(
    cases: Sequence[Case],
    job: dict[str, Any],
    folder: Path,
    receive: Callable[[Event], None],
    lanes: int,
) -> None:
    """Run the cases in worker processes.

    Args:
        cases: in the order of their sections.
        job: ``rehearsal``, ``commit``, ``deadlines`` and ``end`` (monotonic seconds).
        folder: for logs and caches.
        receive: takes every event, from several threads.
        lanes: workers side by side for the parallel cases.
    """
    # Caches that start empty: the time of a first step is reported.
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    env = {name: str(folder / part) for name, part in caches.items()}
    parallel = [case for case in cases if case.parallel]
    narrow = {**env, "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    parts = [parallel[i::lanes] for i in range(lanes)]
    threads = [
        threading.Thread(target=_Lane(part, job, folder, receive, narrow).run)
        for part in parts
        if part
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        job["end"] = 0.0  # for the lanes, all time is over
        raise
    _Lane([case for case in cases if not case.parallel], job, folder, receive, env).run()
