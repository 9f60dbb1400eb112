"""Where the rows of a sample go: a CSV file, a TensorBoard writer, or a function."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nmcompile.diagnostics.figures import FIGURES
from nmcompile.errors import ArgumentError, NMError, shown

#: A product in a sample: ``COLUMNS`` by name, a figure that it has not as None.
Row = Mapping[str, Any]
Write = Callable[[Sequence[Row]], Any]

COLUMNS = ("step", "module", "role", "product", "prune", "format", "method", *FIGURES)
_TO = (
    'to = a path ("telemetry.csv"), a TensorBoard writer (anything with add_scalar) or a function '
    "of a list of rows"
)


def writer_to(to: object) -> Write:
    """What writes the rows of a sample.

    Raises:
        ArgumentError: ``to`` is nothing of the kind.
        NMError: a path that cannot be written, or a file of something else.
    """
    if isinstance(to, (str, os.PathLike)):
        return CSVFile(Path(os.fspath(to))).write
    if callable(add := getattr(to, "add_scalar", None)):
        return lambda rows: scalars(add, rows)
    if callable(to):
        return to
    raise ArgumentError(f"to = {shown(to)}: write {_TO}")


def scalars(add: Callable[[str, float, int], Any], rows: Sequence[Row]) -> None:
    """One scalar for each figure, as ``nmcompile/blocks.0.fc/wgrad/cosine``."""
    for row in rows:
        number = f".{row['product']}" if row["product"] else ""
        place = f"nmcompile/{row['module'] or '(root)'}/{row['role']}{number}"
        for figure in FIGURES:
            if row[figure] is not None:
                add(f"{place}/{figure}", row[figure], row["step"])


class CSVFile:
    """A file that grows by the rows of one sample at a time; one that is there is gone on with.

    Raises:
        NMError: it cannot be written, or is another table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise NMError(f"{path} is a folder: name a file in it, such as {path}/telemetry.csv")
        if not path.parent.is_dir():
            raise NMError(f"{path} cannot be written: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise NMError(f"{path} cannot be written: permission denied")
        if path.exists() and path.stat().st_size:
            self._check()

    def _check(self) -> None:
        head = self.path.read_bytes()
        if not head.startswith(_line(COLUMNS)):
            raise NMError(f"{self.path} is no table of this telemetry: name another file")
        if not head.endswith(b"\n"):
            raise NMError(
                f"{self.path}: its last line is cut off, since something stopped while it was "
                "written: remove that line, or name another file"
            )

    def write(self, rows: Sequence[Row]) -> None:
        """Append the rows, with the names of the columns in front of the first ones; or nothing.

        Raises:
            NMError: they cannot be written.
        """
        lines = [_line([_text(row[c]) for c in COLUMNS]) for row in rows]
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                before = os.fstat(handle).st_size
                text = b"".join(lines if before else [_line(COLUMNS), *lines])
                if os.write(handle, text) < len(text):
                    os.ftruncate(handle, before)
                    raise OSError(0, "no space is left")
            finally:
                os.close(handle)
        except OSError as error:
            raise NMError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _line(cells: Sequence[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue().encode()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
