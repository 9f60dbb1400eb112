"""What Python does on the side, kept out of the way while graphs are traced and compiled."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

#: New objects before one of the youngest, and how many of each generation before the next older.
RARELY = (50_000, 20, 100)
#: A frame of so many entries is given a chunk of 1 MB, of which the calls in it find half free.
_ENTRIES = 2**16


def undisturbed(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """``function``, without two things that cost what it calls a third of its time.

    Collections of unreachable cycles walk every object that there is. Tracing makes objects by the
    million and keeps most of them, so a collection finds little: they are rare meanwhile.
    Collection that is switched off stays off.

    Frames lie in chunks of 16 kB. Where one is full, a loop that calls a function maps a new chunk
    and gives it back with every call, and tracing loops at every depth. Here half a megabyte of one
    chunk is free. Python keeps a spare chunk from 3.14 and the later 3.13 on
    (https://github.com/python/cpython/issues/142183).
    """

    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with _collected_rarely():
            return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_stacksize=_ENTRIES)
    functools.update_wrapper(call, function)
    return call


_lock = threading.Lock()
_inside = 0
_before = gc.get_threshold()


@contextmanager
def _collected_rarely() -> Iterator[None]:
    """The first to enter, of all threads, changes the thresholds, and the last puts them back."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = gc.get_threshold()
            if _before[0]:
                gc.set_threshold(*map(max, _before, RARELY))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                gc.set_threshold(*_before)
