"""Rows of results: where each comes from, and CSV files that are whole at any time.

A run that is cut off leaves the file as it was before its last write. Two runs that write one file
at the same time do not know of each other: the later write wins.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import platform
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Cells = Mapping[str, object]


def origin(*columns: str) -> dict[str, str]:
    """Where and when a row was made: ``machine``, ``python``, ``commit``, ``time``, packages.

    Raises:
        PackageNotFoundError: a column is none of these and no installed package.
    """
    return {column: _ORIGINS.get(column, lambda c=column: _version(c))() for column in columns}


def stamped(column: str) -> Any:
    """The field of a dataclass that is filled by ``origin``."""
    return field(default_factory=lambda: origin(column)[column])


@functools.cache
def machine() -> str:
    """The CPU's model, with its family and model numbers and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()} {os.cpu_count()} cores"
    found = {key.strip(): value.strip() for key, _, value in (n.partition(":") for n in lines)}
    name = " ".join(found.get("model name", "unknown CPU").split())
    numbers = f"family {found.get('cpu family')} model {found.get('model')}"
    return f"{name} {numbers} {os.cpu_count()} cores"


def commit() -> str:
    """``$NM_COMMIT`` (a copy without .git), else git's, with a ``+`` where there are changes."""
    return os.environ.get("NM_COMMIT") or _commit_of_git()


@functools.cache
def _commit_of_git() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package != "nmcompile":  # which runs from a checkout, too
            raise
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


_ORIGINS = {
    "machine": machine,
    "python": platform.python_version,
    "commit": commit,
    "time": lambda: datetime.now(UTC).isoformat(timespec="seconds"),
}


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Iterable[Cells], columns: Sequence[str] = ()) -> None:
    """Write a CSV file; floats have six significant digits, None is an empty cell.

    Args:
        path: the file; its folder is made.
        rows: a column that a row lacks is empty.
        columns: in order; those of all rows if none are given.
    """
    rows = list(rows)
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    save(path, out.getvalue())


def merged(old: Iterable[Cells], new: Iterable[Cells], key: Sequence[str]) -> list[Cells]:
    """``new`` behind those of ``old`` that have the columns ``key`` in common with none of it."""
    new = list(new)
    replaced = {tuple(_text(row[name]) for name in key) for row in new}
    kept = [row for row in old if tuple(_text(row[name]) for name in key) not in replaced]
    return [*kept, *new]


def replace(
    path: Path, rows: Iterable[Cells], key: Sequence[str], columns: Sequence[str] = ()
) -> None:
    """Write ``rows`` in the place of those that the file has with the same ``key``."""
    write(path, merged(read(path), rows, key), columns)


def save(path: Path, content: str | bytes) -> None:
    """Write a file in one step: who reads it sees all of the old one or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
