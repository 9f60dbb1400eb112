"""Do the installs of the Makefile resolve on an ordinary machine? 1 if not: ``make resolve``.

What lies on one machine (wheels, a CPU build of torch, pip's configuration) can hide pins that pip
rejects everywhere else. So a current pip resolves them here without any of it, in environments of
their own, and installs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXTRAS = ("study", "dev")
OLDEST = "3.11"
# The versions of Python for which every pinned package has a wheel.
VERSIONS = (OLDEST, "3.12", "3.13", "3.14")
# What pip needs to reach its index at all; the rest of its settings is the machine's own.
KEPT = ("PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_PROXY")


def environment() -> dict[str, str]:
    """This process's environment without pip's configuration."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PIP_") or k in KEPT}
    return ours | {"PIP_CONFIG_FILE": os.devnull}


def interpreters() -> dict[str, str]:
    """Version to path: the oldest and the newest that are here, and the one that runs this."""
    found = {version: path for version in VERSIONS if (path := find(version))}
    running = f"3.{sys.version_info.minor}"
    found[running] = sys.executable
    newest = max(found, key=VERSIONS.index)
    if OLDEST not in found:
        print(f"SKIPPED: there is no Python {OLDEST} on this machine")
    if newest == running:
        print(f"SKIPPED: there is no Python newer than {running} on this machine")
    return {v: path for v, path in found.items() if v in (OLDEST, running, newest)}


def find(version: str) -> str | None:
    """An interpreter that works, on the path or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    paths = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    for path in filter(None, paths):
        # One of pyenv's shims is there whether or not its version is switched on.
        if subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
            return str(path)
    return None


def make_environment(python: str, folder: Path) -> Path:
    """A new environment with a current pip; returns its interpreter."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = folder / "bin" / "python"
    upgrade = [str(inside), "-m", "pip", "install", "--quiet", "--upgrade", "pip"]
    subprocess.run(upgrade, check=True, env=environment())
    return inside


def resolve(python: Path, extra: str, constraints: Path, folder: Path) -> list[str]:
    """What is wrong with one install."""
    # A copy, because pip writes metadata into the folder that it installs.
    source, report = folder / "source", folder / "report.json"
    shutil.copytree(ROOT / "nmcompile", source / "nmcompile")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [str(python), "-m", "pip", "install", "--dry-run", "--report", str(report)]
    # Reads the metadata alone out of the wheels of an index that does not serve it apart.
    command += ["--use-feature=fast-deps", "-c", str(constraints), "-e", f"{source}[{extra}]"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        return [*done.stdout.splitlines()[-12:], done.stderr]
    return problems(json.loads(report.read_text()), pins(constraints.read_text()))


def pins(constraints: str) -> dict[str, str]:
    """Normalised name to version."""
    lines = (line.split("#")[0].strip() for line in constraints.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {normalised(name): version for name, version in pairs}


def normalised(name: str) -> str:
    """A package's name as the index knows it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def problems(report: Mapping[str, Any], pinned: Mapping[str, str]) -> list[str]:
    """What pip would install, though it is not pinned or is this machine's own."""
    found = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        url = item["download_info"]["url"]
        if name == "nmcompile":
            continue
        if not url.startswith("https:"):
            found.append(f"{name} comes from {url}")
        if normalised(name) not in pinned:
            found.append(f"{name}=={version} is not pinned in constraints.txt")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Resolve every extra under every chosen interpreter; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    constraints = parser.parse_args(arguments).constraints.resolve()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        runs = {}
        for version, path in interpreters().items():
            python = make_environment(path, Path(folder, version))
            for extra in EXTRAS:
                own = Path(folder, f"{version}-{extra}")
                own.mkdir()
                runs[version, extra] = pool.submit(resolve, python, extra, constraints, own)
        results = {run: future.result() for run, future in runs.items()}
    for (version, extra), wrong in results.items():
        print(f"Python {version}, nmcompile[{extra}]: {'FAILED' if wrong else 'resolves'}")
        print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{time.monotonic() - start:.0f} s")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
