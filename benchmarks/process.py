"""A function in a process of its own, which leaves nothing behind.

    with Process(work, job, log=folder / "work.log") as process:
        while process.code is None:
            for message in process.take(0.05):
                ...
            if late():
                process.kill()

``work(channel, job)`` runs in the new process; ``channel.send`` sends what ``take`` returns, and
``channel.recv`` waits for what ``Process.send`` sends. What holds, each with a test:

- ``kill``, or leaving the block in whatever way, ends the process and its process group: compilers
  and their pools too. What makes a session of its own escapes.
- When the parent dies, even killed, the group ends as well, whatever its processes are doing.
- A crash is a negative ``code``, the number of the signal; what was sent before it is received,
  and the next process starts as if nothing had been.
- The process and all that it starts write to ``log``, which stays; or to the parent's terminal.
- Ctrl-C on the terminal is the parent's alone.

``concurrent.futures`` ends no task that hangs; pebble does, but it kills one process without those
that it started, keeps no output and sends a task's result only at its end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_START = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from benchmarks.process import _main"


class Process:
    """``function(channel, *args)`` in a process and a process group of its own.

    Args:
        function: of a module that can be imported; it and ``args`` are pickled.
        args: what it is called with, after the channel.
        env: environment variables besides those of this process.
        log: the file for its output; None: where this process writes.

    Attributes:
        code: None as long as there may be messages to take; then the exit status: 1 after an
            exception, whose traceback is in the output, or less than 0, the signal.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.code: int | None = None
        self.log = log
        job = pickle.dumps((function, args))
        self._connection, theirs = multiprocessing.Pipe()
        alive, self._lifeline = os.pipe()
        command = [sys.executable, "-c", f"{_START}; _main({theirs.fileno()}, {alive})"]
        with log.open("wb") if log else contextlib.nullcontext() as out:
            self._popen = subprocess.Popen(
                command,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                pass_fds=(theirs.fileno(), alive),
            )
        theirs.close()
        os.close(alive)
        with contextlib.suppress(OSError):  # it has died already, which its code tells
            self._connection.send_bytes(job)

    def take(self, wait: float = 0.0) -> list[Any]:
        """The messages that have come; ``wait`` is how many seconds to wait for the first."""
        over = self._popen.poll() is not None  # asked first: all that it sent is there then
        found = []
        try:
            while self._connection.poll(0 if found or over else wait):
                found.append(self._connection.recv())
        except (EOFError, OSError):  # its end is closed: it is about to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(wait)
        if over:
            self.kill()  # what it started may be there still
            self.code = self._popen.returncode
        return found

    def send(self, message: Any) -> None:
        """Send to the process; one that has ended hears nothing."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def kill(self) -> None:
        """End the process and its group at once; ``take`` what it had sent before."""
        if self.code is None:  # later, the number may be another group's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def result(self) -> Any:
        """The last message, at the end of the process.

        Raises:
            RuntimeError: the exit status is not 0; with the end of the log.
        """
        last = None
        while self.code is None:
            for last in self.take(0.1):  # noqa: B007
                pass
        if self.code:
            raise RuntimeError(f"the process ended with status {self.code}\n{self.tail()}")
        return last

    def tail(self, length: int = 4000) -> str:
        """The last characters of the log."""
        return self.log.read_text(errors="replace")[-length:] if self.log else ""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._popen.wait()
        self.code = self._popen.returncode
        self._connection.close()
        os.close(self._lifeline)


def _main(channel: int, alive: int) -> None:
    """The new process: run the function that the parent sends."""
    for number in (channel, alive):
        os.set_inheritable(number, False)
    connection = Connection(channel)
    _end_with_parent(connection, alive)
    faulthandler.enable()
    function, args = connection.recv()
    function(connection, *args)


def _end_with_parent(connection: Connection, alive: int) -> None:
    """Fork a process that waits for the parent's end and then ends the group.

    No thread: it would wait with all others for a call that hangs in native code.
    """
    if os.fork() == 0:
        connection.close()
        os.read(alive, 1)  # until nobody holds the other end
        os.killpg(0, signal.SIGKILL)
    os.close(alive)
