"""Reports beside Inductor's cache: on a warm cache no pass runs that could make one."""

from __future__ import annotations

import logging

from pydantic import TypeAdapter, ValidationError

from nmcompile import cache
from nmcompile.report.report import GraphReport

log = logging.getLogger(__name__)


class StoredReports:
    """The reports of one compiled graph on disk: a warm cache skips the passes that make them."""

    _adapter = TypeAdapter(list[GraphReport])

    def __init__(self, digest: str) -> None:
        self._path = cache.folder() / f"{digest}.json"

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
        """Keep them; a folder that cannot be written is logged."""
        try:
            cache.write(self._path, self._adapter.dump_json(reports))
        except OSError as error:
            log.warning("no report is kept beside the cache: %s", error)
