"""Our files beside Inductor's cache: where they lie, and how they are written.

Each is written in one step, since processes race and runs are cut off.
"""

from __future__ import annotations

import os
import tempfile
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
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too
        Path(temporary).unlink(missing_ok=True)
        raise
