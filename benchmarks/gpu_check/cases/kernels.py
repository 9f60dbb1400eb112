"""Section ``kernels``: the suite of ``tests/kernels``, run on the device.

A case is all tests of one kernel, that is those with the same name and first parameter; each of
them is a check. In a rehearsal the operators' PyTorch code stands in for every kernel.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.gpu_check.events import Case, Session

_ROOT = Path(__file__).resolve().parents[3]
_SUITE = "tests/kernels"


def cases(rehearse: bool) -> list[Case]:
    """A case for each kernel, in the order of the suite."""
    groups: dict[str, list[str]] = {}
    for key in _collected("cpu" if rehearse else "cuda"):
        groups.setdefault(_names(key)[0], []).append(key)
    return [
        Case(
            section="kernels",
            name=name,
            run=partial(run, keys=keys),
            parallel=True,
            seconds=3,
            limit=90,
        )
        for name, keys in groups.items()
    ]


def run(session: Session, keys: list[str]) -> None:
    """Run some tests, by their ids, and report each as a check.

    Raises:
        RuntimeError: pytest ended otherwise than with tests that passed or failed.
    """
    reporter = _Reporter(session)
    with contextlib.redirect_stdout(sys.stderr):  # a worker's output is kept for a crash
        code = _pytest(session.device.name, keys, reporter)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with status {int(code)}")
    if missing := set(keys) - reporter.seen:
        raise RuntimeError(f"not run: {', '.join(sorted(missing))}")


class _Reporter:
    """Checks, notes and rows from pytest's reports."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.seen: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _names(report.nodeid)[1]
        if report.when == "call" or not report.passed:
            self.seen.add(report.nodeid)
            if report.skipped:
                self.session.note(name, str(report.longrepr[-1]))  # type: ignore[index]
            else:
                self.session.check(name, report.passed, report.longreprtext[-2000:])
        if report.when == "call":
            for metric, (value, x) in report.user_properties:
                self.session.row("nm.compress", metric, [value], x=x)


def _names(key: str) -> tuple[str, str]:
    """Of the case and of the check of a test's id: ``FILE::test_x[kernel-operand]``."""
    function, _, parameters = key.rpartition("::")[2].partition("[")
    name = function.removeprefix("test_").replace("_", " ")
    kernel, _, operand = parameters.removesuffix("]").partition("-")
    return f"{name} {kernel}".strip(), operand or name


@functools.cache
def _collected(place: str) -> list[str]:
    """The ids of the suite's tests, without a look at the device."""

    class Collector:
        keys: list[str]

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            self.keys = [item.nodeid for item in session.items]

    collector, output = Collector(), io.StringIO()
    with contextlib.redirect_stdout(output):
        code = _pytest(place, ["--collect-only", _SUITE], collector)
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"the suite cannot be collected\n{output.getvalue()[-4000:]}")
    return collector.keys


def _pytest(place: str, arguments: Iterable[str], plugin: Any) -> int:
    """pytest in this process, whose own settings (of time limits, of faults) it leaves alone."""
    given = ["-q", "-s", "-o", "addopts=", f"--rootdir={_ROOT}", f"--confcutdir={_SUITE}"]
    for unused in ("cacheprovider", "faulthandler", "xdist"):
        given += ["-p", f"no:{unused}"]
    with patch.dict(os.environ, NMCOMPILE_KERNELS_ON=place), contextlib.chdir(_ROOT):
        return int(pytest.main([*given, *arguments], plugins=[plugin]))
