"""The reports of this process, by the ``torch.compile`` call that they belong to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nmcompile import _torch
from nmcompile.capture.regions import Region
from nmcompile.errors import NMError
from nmcompile.policy import Policy
from nmcompile.report.nothing_pruned import warn_if_nothing_pruned
from nmcompile.report.report import GraphReport, Report


@dataclass
class _Compilation:
    """The graphs of one ``torch.compile`` call; ``owner`` keeps its identity alive."""

    owner: Any
    policy: Policy
    graphs: list[GraphReport] = field(default_factory=list)
    judged: bool = False
    whole: Callable[[], nn.Module | None] = lambda: None  # a weak reference

    def report(self) -> Report:
        left_out = uncompiled(whole, self.graphs) if (whole := self.whole()) is not None else ()
        return Report.of(self.policy, tuple(self.graphs), left_out)


class History:
    """Reports grouped by the ``torch.compile`` call that they belong to (several graph breaks)."""

    def __init__(self) -> None:
        self._compilations: dict[int, _Compilation] = {}
        self._newest: _Compilation | None = None

    def add(
        self,
        owner: Any,
        policy: Policy,
        graphs: list[GraphReport],
        complete: bool = False,
        whole: nn.Module | None = None,
    ) -> None:
        """Record the graphs that were just compiled for ``owner`` (None: a call of its own).

        ``complete``: nothing more follows of what the user compiled, so that a policy which pruned
        nothing by now is worth a warning, once. ``whole``: the module that the user compiled.
        """
        entry = self._compilations.get(id(owner)) if owner is not None else None
        if entry is None or entry.policy != policy:
            entry = _Compilation(owner, policy)
            if owner is not None:
                self._compilations[id(owner)] = entry
        entry.graphs.extend(graphs)
        if whole is not None:
            entry.whole = weakref.ref(whole)
        self._newest = entry
        if complete and not entry.judged:
            entry.judged = True
            warn_if_nothing_pruned(entry.report(), policy)

    def last(self) -> Report:
        """See :func:`nmcompile.last_report`."""
        if self._newest is None:
            raise NMError(
                "nothing has been compiled yet: call a model compiled with "
                'torch.compile(model, backend="nm_sparse") first'
            )
        return self._newest.report()

    def clear(self) -> None:
        """Forget everything."""
        self._compilations.clear()
        self._newest = None


def uncompiled(whole: nn.Module, graphs: Iterable[GraphReport]) -> list[str]:
    """Paths of linear and convolution modules of ``whole`` of which no graph holds a product.

    A graph break inside of a loop or a hook can leave parts of a model to run eagerly. A module
    whose parent multiplies by its weight (attention's output projection) counts as held.
    """
    held = {
        path
        for graph in graphs
        for shown in (*(s.module for s in graph.sites), *(s.path for s in graph.skipped))
        for path in Region(graph.region).each(shown)
    }
    layers = [p for p, m in whole.named_modules() if isinstance(m, (nn.Linear, _torch.ConvNd))]
    return [p for p in layers if not {p, p.rpartition(".")[0]} & held]
