"""Worker processes: a case that hangs is killed, one that crashes does not end the others.

Cases run in order in one worker, which is started anew, without the case that broke it, after a
crash; those in a row that measure no time run side by side in several. What still runs at the end
of its section's time is killed: the sections after it have theirs.
"""

from __future__ import annotations

import itertools
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
_RESTARTS = 12
_START_LIMIT = 90.0  # seconds until a worker's first event
_GRACE = 1.0  # seconds that a case may take to end by itself


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
            late = [case for case in self._left() if time.monotonic() > self._end_of(case)]
            self._give_up(late, "skipped", "its section's time is over")
            left = self._left()
            if not left:
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
                over = time.monotonic() > self._end_of(self.running)
                status = "cut off" if over else "crashed"
                self._end(self.running, status, seconds, f"{tail}\n{cause}")
        self._give_up(self._left(), "crashed", f"given up after {_RESTARTS} workers")

    def _left(self) -> list[Case]:
        return [case for case in self.cases if case.key not in self.done]

    def _end_of(self, case: Case) -> float:
        return min(self.job["end"], self.job["deadlines"][case.section])

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
        now = time.monotonic()
        patience = self.job.get("patience", 1.0)
        if self.running is None:
            over = now > self.job["end"] or now - self.started > _START_LIMIT * patience
            return "killed before its first case, or between two" if over else ""
        if now - self.started > self.running.limit * patience:
            return f"killed after {now - self.started:.0f} s"
        over = now > self._end_of(self.running) + _GRACE
        return "killed: its section's time is over" if over else ""


def supervise(
    cases: Sequence[Case],
    job: dict[str, Any],
    folder: Path,
    caches: Path,
    receive: Callable[[Event], None],
    lanes: int,
) -> None:
    """Run the cases in worker processes.

    Args:
        cases: in the order of their sections.
        job: ``rehearsal``, ``commit``, ``deadlines`` and ``end`` (monotonic seconds), and
            ``patience``, by which every limit is multiplied; ``caches`` where kernels were brought
            along.
        folder: for logs.
        caches: Inductor's and Triton's, in two folders of it.
        receive: takes every event, from several threads.
        lanes: workers side by side for the parallel cases.
    """
    env = {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
    env |= {"TRITON_CACHE_DIR": str(caches / "triton")}
    if job.get("caches"):  # Inductor's workers take torch's own ptxas, and find nothing in it
        env |= {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    narrow = {**env, "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    for parallel, group in itertools.groupby(cases, key=lambda case: case.parallel):
        some = list(group)
        parts = [some[i::lanes] for i in range(lanes)] if parallel else [some]
        own = narrow if parallel else env
        _run([_Lane(part, job, folder, receive, own) for part in parts if part], job)


def _run(lanes: Sequence[_Lane], job: dict[str, Any]) -> None:
    """Run lanes side by side."""
    threads = [threading.Thread(target=lane.run) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        job["end"] = 0.0  # for the lanes, all time is over
        raise
