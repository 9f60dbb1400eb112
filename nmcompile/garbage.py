"""Fewer collections while graphs are traced: each walks every object that there is."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: New objects before one of the youngest, and how many of each generation before the next older.
_RARELY = (50_000, 20, 100)


@contextmanager
def collected_rarely() -> Iterator[None]:
    """A context in which Python looks for unreachable cycles seldom.

    Tracing makes objects by the million and keeps most of them, so a collection finds little.
    Collection that is switched off stays off.
    """
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(*map(max, before, _RARELY))
    try:
        yield
    finally:
        gc.set_threshold(*before)
