"""A report's files: written whole or not at all, and read with one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nmcompile import cache
from nmcompile.errors import NMError


def write(path: str | Path, text: str) -> Path:
    """Write a whole file or nothing, into a folder that is there.

    Raises:
        NMError: it cannot be written.
    """
    place = Path(path)
    try:
        if place.exists() and not place.is_file():  # /dev/stdout, a pipe; of a folder it says so
            place.write_text(text, encoding="utf-8")
        else:
            cache.replace(place.resolve(), text.encode())
    except OSError as error:
        raise NMError(f"{path}: cannot be written: {error.strerror or error}") from error
    return place


def read(path: str | Path, version: int) -> dict[str, Any]:
    """The document of ``Report.to_json``.

    Raises:
        NMError: it cannot be read, is no report, or is one of another ``schema_version``.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise NMError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise NMError(f"{path}: is no JSON: {error}") from error
    if not isinstance(data, dict) or "graphs" not in data or "schema_version" not in data:
        raise NMError(f"{path}: is no report: `nmcompile explain TARGET --json` writes one")
    found = data["schema_version"]
    if found != version:
        raise NMError(
            f"{path}: is a report of schema_version {found!r}, and this nmcompile reads {version}: "
            "write it again with `nmcompile explain TARGET --json`"
        )
    return data


def broken(path: str | Path, error: ValidationError) -> NMError:
    """What is wrong with a document of the right version: the first mistake."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "the document"
    return NMError(f"{path}: is no report as it was written: {where}: {first['msg']}")
