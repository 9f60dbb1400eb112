"""The reports of this process, by the ``torch.compile`` call that they belong to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nmcompile.errors import NMError
from nmcompile.policy import Policy
from nmcompile.reason import Reason
from nmcompile.report.nothing_pruned import warn_if_nothing_pruned
from nmcompile.report.report import GraphReport, Report
from nmcompile.report.uncompiled import uncompiled


@dataclass
class _Compilation:
    """The graphs of one ``torch.compile`` call; ``owner`` keeps its identity alive."""

    owner: Any
    policy: Policy
    graphs: list[GraphReport] = field(default_factory=list)
    judged: bool = False
    whole: Callable[[], nn.Module | None] = lambda: None  # a weak reference
    alive: Callable[[], Any] = lambda: None  # a weak reference: to what it is gone with
    parameters: set[str] = field(default_factory=set)  # of ``whole``, that graphs read
    notes: list[Reason] = field(default_factory=list)

    def report(self) -> Report:
        left_out: Collection[str] = ()
        if (whole := self.whole()) is not None:
            left_out = uncompiled(whole, self.graphs, self.parameters)
        return Report.of(self.policy, tuple(self.graphs), left_out, notes=self.notes)


class History:
    """Reports grouped by the ``torch.compile`` call that they belong to (several graph breaks).

    Of a call whose module or function is gone, the reports are kept while they are the newest.
    """

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
        parameters: Collection[str] = (),
        alive: Any = None,
    ) -> None:
        """Record the graphs that were just compiled for ``owner`` (None: a call of its own).

        ``complete``: nothing more follows of what the user compiled, so that a policy which pruned
        nothing by now is worth a warning, once. ``whole``: the module that the user compiled.
        ``parameters``: those of its parameters that the graphs read.
        ``alive``: the module or function without which the call is gone.
        """
        entry = self._entry(owner, policy, whole, alive)
        entry.graphs.extend(graphs)
        entry.parameters.update(parameters)
        if complete and not entry.judged:
            entry.judged = True
            warn_if_nothing_pruned(entry.report(), policy)

    def note(
        self, owner: Any, policy: Policy, reason: Reason, whole: nn.Module | None = None
    ) -> bool:
        """Record what happened to all of a ``torch.compile`` call; False if that is known."""
        notes = self._entry(owner, policy, whole).notes
        if reason in notes:
            return False
        notes.append(reason)
        return True

    def remark(self, reason: Reason | None) -> None:
        """Add to the newest report what happened beside its graphs; None: nothing."""
        if reason is not None and self._newest is not None and reason not in self._newest.notes:
            self._newest.notes.append(reason)

    def _entry(
        self, owner: Any, policy: Policy, whole: nn.Module | None, alive: Any = None
    ) -> _Compilation:
        entry = self._compilations.get(id(owner)) if owner is not None else None
        if entry is None or entry.policy != policy:
            entry = _Compilation(owner, policy)
            if owner is not None:
                self._compilations[id(owner)] = entry
            if (ends := whole if alive is None else alive) is not None:
                # Dynamo itself keeps every owner, which is the backend with its options.
                weakref.finalize(ends, self._forget, entry).atexit = False
                entry.alive = weakref.ref(ends)
        if whole is not None:
            entry.whole = weakref.ref(whole)
        self._newest = entry
        return entry

    def _forget(self, entry: _Compilation) -> None:
        if self._compilations.get(id(entry.owner)) is entry:
            del self._compilations[id(entry.owner)]

    def last(self) -> Report:
        """See :func:`nmcompile.last_report`."""
        if self._newest is None:
            raise NMError(
                "nothing has been compiled yet: call a model compiled with "
                'torch.compile(model, backend="nm_sparse") first. If it has been called, '
                "torch.compile did not look at it: its forward is under torch.compiler.disable, "
                "or it is of a class of PyTorch's own and was compiled with module.compile(); "
                "nmcompile.compile(model, policy) takes these"
            )
        return self._newest.report()

    def of(
        self, policy: Policy, modules: Collection[nn.Module], owner: Any = None
    ) -> Report | None:
        """See :func:`nmcompile.backend.report_of`; ``owner`` is known of one call."""
        entries = list(self._compilations.values())
        ours = [e for e in entries if owner is not None and e.owner is owner]
        # Blocks that are compiled one by one share their policy and its report.
        own = ours or [e for e in entries if (e.policy if owner is None else e.owner) is policy]
        alike = [e for e in entries if e.policy == policy and e.alive() in modules]
        found = own or alike[-1:]
        return found[0].report() if found else None

    def clear(self) -> None:
        """Forget everything."""
        self._compilations.clear()
        self._newest = None
