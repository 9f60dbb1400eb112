"""Runs cases one after the other, here or in a process of its own."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.device import Device, Rehearsal
from benchmarks.gpu_check.events import Case, Event, Session, stamp

LOST = 3  # exit status: the device answers no more in this process


def run_cases(
    chosen: Sequence[Case],
    device: Device,
    deadlines: dict[str, float],
    send: Callable[[Event], None],
    commit: str,
    caches: str = "empty",
) -> bool:
    """Run each case for which its section has time; False when the device was lost."""
    environment = {**cases.versions(), **device.describe(), "commit": commit}
    environment["caches"] = caches
    send({"kind": "environment", "data": environment})
    fields, facts = stamp(environment, commit), dict[Any, Any]()
    for case in chosen:
        place = {"section": case.section, "case": case.name}
        session = Session(device, send, fields, facts, case, deadlines[case.section])
        if (left := session.left()) < case.seconds:
            why = f"needs {case.seconds:.0f} s, {max(left, 0):.0f} s are left"
            send({"kind": "end", **place, "status": "skipped", "seconds": 0.0, "error": why})
            continue
        send({"kind": "start", **place, "limit": case.limit})
        start, status, error = time.monotonic(), "ok", ""
        try:
            case.run(session)
            device.synchronize()
        except Exception:
            status, error = "error", traceback.format_exc()
        lost = status != "ok" and device.lost()
        seconds = time.monotonic() - start
        send({"kind": "end", **place, "status": status, "seconds": seconds, "error": error})
        if lost:
            return False
        device.tidy(graphs="dense" not in facts)  # which later cases are compared with
    return True


def work(channel: Any, job: dict[str, Any]) -> None:
    """Run the cases of a job in a worker process.

    Args:
        channel: takes the events.
        job: ``rehearsal``, ``commit``, ``caches`` (what was in them), ``keys`` of the cases in
            order, ``deadlines`` of their sections (monotonic seconds, alike in all processes of a
            machine).
    """

    def send(event: Event) -> None:  # plain values alone: the supervisor needs nothing to read them
        channel.send(json.loads(json.dumps(event, default=str)))

    sections = {key.partition("/")[0] for key in job["keys"]}
    by_key = {case.key: case for case in cases.all_cases(job["rehearsal"], sections)}
    device = Rehearsal() if job["rehearsal"] else Device()
    chosen = [by_key[key] for key in job["keys"]]
    about = job["commit"], job.get("caches", "empty")
    alive = run_cases(chosen, device, job["deadlines"], send, *about)
    sys.exit(0 if alive else LOST)
