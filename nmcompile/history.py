"""The reports of this process, and those kept beside Inductor's cache."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nmcompile import _torch
from nmcompile.errors import NMError
from nmcompile.nothing_pruned import warn_if_nothing_pruned
from nmcompile.policy import Policy
from nmcompile.report import GraphReport, Report

log = logging.getLogger(__name__)


@dataclass
class _Compilation:
    """The graphs of one ``torch.compile`` call; ``owner`` keeps its identity alive."""

    owner: Any
    policy: Policy
    graphs: list[GraphReport] = field(default_factory=list)
    judged: bool = False

    def report(self) -> Report:
        return Report.of(self.policy, tuple(self.graphs))


class History:
    """Reports grouped by the ``torch.compile`` call that they belong to (several graph breaks)."""

    def __init__(self) -> None:
        self._compilations: dict[int, _Compilation] = {}
        self._newest: _Compilation | None = None

    def add(
        self, owner: Any, policy: Policy, graphs: list[GraphReport], complete: bool = False
    ) -> None:
        """Record the graphs that were just compiled for ``owner`` (None: a call of its own).

        ``complete``: nothing more follows of what the user compiled, so that a policy which pruned
        nothing by now is worth a warning, once.
        """
        entry = self._compilations.get(id(owner)) if owner is not None else None
        if entry is None or entry.policy != policy:
            entry = _Compilation(owner, policy)
            if owner is not None:
                self._compilations[id(owner)] = entry
        entry.graphs.extend(graphs)
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


class StoredReports:
    """The reports of one compiled graph on disk: a warm cache skips the passes that make them."""

    _adapter = TypeAdapter(list[GraphReport])

    def __init__(self, digest: str) -> None:
        self._path = _torch.cache_dir() / "nmcompile" / f"{digest}.json"

    def load(self) -> list[GraphReport] | None:
        """None where there is none, or none that can be read."""
        try:
            return self._adapter.validate_json(self._path.read_bytes())
        except OSError:
            return None
        except ValidationError as error:
            log.warning("unreadable report %s is made anew: %s", self._path, error)
            return None

    def save(self, reports: list[GraphReport]) -> None:
        """Write in one step (two processes may race); a folder that cannot be written is logged."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(self._adapter.dump_json(reports))
            os.replace(name, self._path)
        except OSError as error:
            log.warning("no report is kept beside the cache: %s", error)
