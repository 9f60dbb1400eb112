"""Reports beside Inductor's cache: on a warm cache no pass runs that could make one."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nmcompile import cache
from nmcompile.report.report import GraphReport

log = logging.getLogger(__name__)


class StoredReports:
    """The reports of one compiled graph on disk: a warm cache skips the passes that make them.

    Each is stored with a digest of its content. What was changed, cut off, or written for another
    graph is no report, and neither is an empty list.
    """

    _adapter = TypeAdapter(list[GraphReport])

    def __init__(self, digest: str) -> None:
        self._path = cache.folder() / f"{digest}.json"
        self._digest = digest

    def load(self) -> list[GraphReport] | None:
        """None where there is none, or none that can be trusted."""
        try:
            data = json.loads(self._path.read_bytes())
            self._check(data)
            return self._adapter.validate_python(data, strict=False)
        except OSError:
            return None
        except (ValidationError, ValueError, RecursionError) as error:
            log.warning("unreadable report %s is made anew: %s", self._path, error)
            return None

    def _check(self, data: Any) -> None:
        """Take the digests out of what was stored. Raises ``ValueError`` for the first mistake."""
        if not isinstance(data, list) or not data or not all(isinstance(d, dict) for d in data):
            raise ValueError("it is not a list of reports")
        for entry in data:
            if entry.pop(_CONTENT, None) != _content(entry):
                raise ValueError("its content is not what was written")
            if entry.get("digest") != self._digest:
                raise ValueError("it is of another graph")

    def save(self, reports: list[GraphReport]) -> None:
        """Keep them; a folder that cannot be written is logged."""
        data = self._adapter.dump_python(reports, mode="json")
        for entry in data:
            entry[_CONTENT] = _content(entry)
        try:
            cache.write(self._path, json.dumps(data).encode())
        except OSError as error:
            log.warning("no report is kept beside the cache: %s", error)


_CONTENT = "sha256"


def _content(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
