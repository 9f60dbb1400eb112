"""Our files beside Inductor's cache: where they lie, and how they are written.

Each is written in one step, since processes race and runs are cut off, and with the permissions
that Inductor's own files have: who can read its cache can read ours.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from nmcompile import _torch


def folder() -> Path:
    """Where our files lie: inside of Inductor's cache folder, so that both go together."""
    return _torch.cache_dir() / "nmcompile"


def write(path: Path, data: bytes) -> None:
    """Write a whole file or nothing; of two writers at once, the last one wins.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, data)


def replace(path: Path, data: bytes) -> None:
    """The same in a folder that must be there.

    Raises:
        OSError: it is not, or cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    # 0o666 less the umask, which a temporary file of the library would not have.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        raise
