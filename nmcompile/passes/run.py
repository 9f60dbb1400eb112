"""Run a list of passes, check what each needs and leaves, and write down the graph in between.

``TORCH_LOGS="+nmcompile"`` logs a numbered dump of the graph before the first pass and after every
pass that changed it; a trace (``TORCH_TRACE``) then holds the same dumps as artifacts.
``NMCOMPILE_CHECK_PASSES=1`` checks after every pass that the graph is sound, that what changed is
described by its metadata, and that every fact left so far still holds. Tests turn it on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from nmcompile import _torch
from nmcompile.errors import NMError, owned
from nmcompile.graph.dump import readable
from nmcompile.graph.honest import Snapshot, dishonest

log = logging.getLogger(__name__)

#: What holds in a state: yields a sentence for everything that contradicts it.
Fact = Callable[[Any], Iterable[str]]


@dataclass(frozen=True)
class Pass:
    """A pass and its contract: the facts that it needs, and those that hold from then on."""

    run: Callable[[Any], None]
    needs: Sequence[Fact] = ()
    leaves: Sequence[Fact] = ()

    @property
    def name(self) -> str:
        return getattr(self.run, "__name__", repr(self.run))


def run(passes: Sequence[Pass], state: Any, title: str) -> None:
    """Run every pass on ``state``, whose ``graph`` is changed in place.

    Args:
        passes: in order.
        state: a ``Plan`` or ``Kernels``.
        title: what the graph is, for the log.

    Raises:
        PolicyError: a rule asks for what a site cannot have and says ``fallback = "error"``.
        NMError: a pass failed, lacks what it needs, or broke what holds; the message names it.
    """
    held: list[Fact] = []
    checks = _checks()
    shown = _dump(state.graph, "", title, 0, "before")
    for number, step in enumerate(passes, 1):
        lacking = [_name(fact) for fact in step.needs if fact not in held]
        if lacking:
            raise NMError(f"pass {step.name} needs {', '.join(lacking)}: no earlier pass leaves it")
        start, before = time.perf_counter(), Snapshot.of(state.graph) if checks else None
        with owned(f"pass {step.name}"):
            step.run(state)
        log.debug("%s: %s, %.1f ms", title, step.name, 1e3 * (time.perf_counter() - start))
        shown = _dump(state.graph, shown, title, number, step.name)
        held += step.leaves
        if before is not None:
            _check(step, state, held, before)


def _checks() -> bool:
    """Read at every run: whoever sets it may come after the first import (a conftest does)."""
    return os.environ.get("NMCOMPILE_CHECK_PASSES") == "1"


def _check(step: Pass, state: Any, held: Sequence[Fact], before: Snapshot) -> None:
    with owned(f"pass {step.name}"):
        state.graph.lint()
        wrong = [*dishonest(state.graph, before)]
        wrong += [f"{_name(fact)}: {text}" for fact in held for text in fact(state)]
    if wrong:
        raise NMError(f"pass {step.name} left a graph in which " + "; ".join(wrong[:5]))


def _name(fact: Fact) -> str:
    return getattr(fact, "__name__", repr(fact))


def _dump(graph: fx.Graph, shown: str, title: str, number: int, name: str) -> str:
    """Log and trace the graph where somebody listens and it changed; returns what was shown."""
    if not log.isEnabledFor(logging.DEBUG):
        return shown
    code = readable(graph)
    if code != shown:
        log.debug("%s, %02d %s:\n%s", title, number, name, code)
        _torch.trace_artifact(f"nmcompile_{title.replace(' ', '_')}_{number:02d}_{name}", code)
    return code
