"""What ``benchmarks.process`` guarantees."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.process import Process

ROOT = Path(__file__).parents[2]


# -- what runs in a process of its own ---------------------------------------------------------


def starts_another(channel: Any) -> None:
    """A compiler, say, that would run for a minute."""
    other = subprocess.Popen(["sleep", "60"])
    channel.send([os.getpid(), other.pid])
    other.wait()


def hangs_in_native_code(channel: Any) -> None:
    """No other thread of Python can run meanwhile."""
    channel.send([os.getpid(), subprocess.Popen(["sleep", "60"]).pid])
    ctypes.PyDLL(None).sleep(60)


def dies(channel: Any, number: int) -> None:
    channel.send("before")
    print("about to die", flush=True)
    os.kill(os.getpid(), number)


def leaves_another(channel: Any) -> None:
    channel.send([subprocess.Popen(["sleep", "60"]).pid])


def answers(channel: Any) -> None:
    while (question := channel.recv()) is not None:
        channel.send(2 * question)


def fails(channel: Any, how: BaseException) -> None:
    raise how


def tells_environment(channel: Any, name: str) -> None:
    channel.send("x" * 10**6)  # more than any buffer holds
    channel.send((os.environ.get(name), os.environ.get("HOME")))


# -- helpers -----------------------------------------------------------------------------------


def first(process: Process) -> Any:
    """The first message."""
    while not (found := process.take(0.1)):
        assert process.code is None
    return found[0]


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_for_end(process: Process) -> list[Any]:
    found = []
    while process.code is None:
        found += process.take(0.1)
    return found


# -- what is guaranteed ------------------------------------------------------------------------


@pytest.mark.parametrize("function", [starts_another, hangs_in_native_code])
def test_killing_a_process_ends_what_it_started(function: Any) -> None:
    with Process(function) as process:
        pids = first(process)
        assert all(map(is_alive, pids))
        process.kill()
        assert wait_for_end(process) == []
        assert process.code == -signal.SIGKILL
        assert_gone(pids)


def test_an_exception_in_the_block_ends_the_process() -> None:
    def use() -> None:
        with Process(starts_another) as process:
            pids.extend(first(process))
            raise ZeroDivisionError

    pids: list[int] = []
    with pytest.raises(ZeroDivisionError):
        use()
    assert len(pids) == 2
    assert_gone(pids)


def test_what_a_process_leaves_running_ends_with_it() -> None:
    with Process(leaves_another) as process:
        (pids,) = wait_for_end(process)
        assert process.code == 0
        assert_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_reported_and_the_next_process_runs(number: int, tmp_path: Path) -> None:
    with Process(dies, int(number), log=tmp_path / "log") as process:
        assert wait_for_end(process) == ["before"]
        assert process.code == -number
        assert "about to die" in process.tail()
    with Process(answers) as process:
        process.send(4)
        process.send(None)
        assert process.result() == 8


#: A parent that waits for a process as the commands do; the first message is printed.
PARENT = """
import sys
from benchmarks.process import Process
from tests.benchmarks import test_process
with Process(getattr(test_process, sys.argv[1])) as process:
    print(*test_process.first(process), flush=True)
    process.result()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("function", ["starts_another", "hangs_in_native_code"])
def test_ctrl_c_and_the_end_of_the_parent_leave_nothing_running(function: str, number: int) -> None:
    command = [sys.executable, "-c", PARENT, function]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A group of its own, as a terminal gives to a command: Ctrl-C is a signal to all in it.
    parent = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) == 2
    assert all(map(is_alive, pids))
    os.killpg(parent.pid, number)
    _, errors = parent.communicate(timeout=20)
    assert_gone(pids)
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert errors.count("Traceback") <= 1, "the process saw the signal as well"


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (ValueError("so it is"), 1, "ValueError: so it is"),
        (SystemExit(3), 3, ""),
        (SystemExit("no GPU"), 1, "no GPU"),
    ],
)
def test_an_exception_is_a_status_and_in_the_log(
    how: BaseException, code: int, said: str, tmp_path: Path
) -> None:
    with Process(fails, how, log=tmp_path / "log") as process:
        with pytest.raises(RuntimeError, match=f"ended with status {code}") as error:
            process.result()
        assert process.code == code
    assert said in str(error.value)
    assert said in (tmp_path / "log").read_text()


def test_environment_and_large_messages() -> None:
    with Process(tells_environment, "NM_TEST", env={"NM_TEST": "there"}) as process:
        big, told = wait_for_end(process)
    assert len(big) == 10**6
    assert told == ("there", os.environ.get("HOME"))


def test_messages_both_ways() -> None:
    with Process(answers) as process:
        for number in range(3):
            process.send(number)
            assert first(process) == 2 * number
        process.send(None)
        assert wait_for_end(process) == []
        assert process.code == 0
        process.send("nobody hears this")
        process.kill()


def test_what_cannot_be_pickled_starts_nothing() -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        Process(lambda channel: None)
