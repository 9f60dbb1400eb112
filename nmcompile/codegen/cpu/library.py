"""A compiled C++ library out of Inductor's cache, built again where what lies there is dead.

Inductor takes any file of the right name for what its compiler wrote. A power cut or a full disk
leaves one that is empty or cut off, which no process would ever replace, and which may end the
process when it is mapped.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

from nmcompile import _torch


def load(source: str, function: str) -> ctypes.CDLL:
    """The library of a C++ source, which must have this function.

    Raises:
        RuntimeError, OSError: the compiler's error, or the loader's about a library that was just
            built.
    """
    try:
        return _load(source, function)
    except DeadLibrary as dead:
        dead.remove()
    return _load(source, function)


class DeadLibrary(OSError):
    """What lies in the cache is no library, or not one with the function."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self._path = path
        self._number = _number(path)

    def remove(self) -> None:
        """Make room for a new one, unless another process has built it meanwhile."""
        if _number(self._path) == self._number:
            self._path.unlink(missing_ok=True)


def _load(source: str, function: str) -> ctypes.CDLL:
    def open_library(path: Path) -> ctypes.CDLL:
        why = damage(path)
        if why is not None:
            raise DeadLibrary(path, why)
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise DeadLibrary(path, str(error)) from error
        if not hasattr(library, function):
            raise DeadLibrary(path, f"it has no function {function}")
        return library

    library: ctypes.CDLL = _torch.load_cpp(source, open_library)
    return library


def _number(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


# Of a 64-bit ELF file: where its table of sections begins, the size of a row and their number.
_SECTIONS = struct.Struct("<Q10xHH")
_AT = 40


def damage(path: Path) -> str | None:
    """Why an ELF file is not whole: its table of sections, which is written last, lies outside.

    None for a whole one, and for a file of another kind, which the loader may know.
    """
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    with path.open("rb") as file:
        head = file.read(64)
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
        return None
    begin, row, rows = _SECTIONS.unpack_from(head, _AT)
    end = begin + row * rows
    return f"it is cut off after {size} of {end} bytes" if end > size else None
