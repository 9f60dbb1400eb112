"""Caches of compiled kernels that come from elsewhere: ``python -m ...caches SOURCE TARGET``.

Triton's key is made of a kernel's source, the target and Triton's own files, so a cubin that was
compiled without a GPU is the one that a GPU of that architecture takes, under the same build of
Triton (a wheel of another version of Python is another build). But a group of files in its cache
names them by absolute paths. Inductor's key has the device's name: its cache is of use where it was
made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

#: What is loaded to launch a kernel; the rest of a group is there to be read by people.
_NEEDED = (".json", ".cubin")
#: Which Triton made them.
_BUILD = "build"


def build() -> str:
    """Digest of what Triton puts in every key; empty where there is no Triton."""
    try:
        from triton.runtime.cache import triton_key
    except ImportError:
        return ""
    return hashlib.sha256(triton_key().encode()).hexdigest()


def settle(folder: Path) -> str:
    """Let every group of a Triton cache name its files where they lie now; what was found."""
    groups = list(folder.glob("*/__grp__*.json"))
    for group in groups:
        content = json.loads(group.read_text())
        paths = content.get("child_paths") or {}
        found = {name: str(group.parent / name) for name in paths}
        if found != paths:
            group.write_text(json.dumps({**content, "child_paths": found}))
    made = folder / _BUILD
    other = made.exists() and made.read_text() != build()
    why = ", of another build of Triton: all are compiled anew" if other else ""
    return f"{len(groups)} kernels brought along{why}"


def carry(source: Path, target: Path) -> int:
    """Copy what is needed of a Triton cache, to be brought along; how many kernels."""
    for group in source.glob("*/__grp__*.json"):
        folder = target / group.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        paths = json.loads(group.read_text()).get("child_paths") or {}
        kept = [name for name in paths if name.endswith(_NEEDED)]
        for name in kept:
            shutil.copy2(group.parent / name, folder / name)
        content = {"child_paths": {name: str(folder / name) for name in kept}}
        (folder / group.name).write_text(json.dumps(content))
    target.mkdir(parents=True, exist_ok=True)
    (target / _BUILD).write_text(build())
    return len(list(target.glob("*/__grp__*.json")))


if __name__ == "__main__":
    print(f"{carry(Path(sys.argv[1]), Path(sys.argv[2]))} compiled kernels")
