"""Run the core of the test suite under several versions of PyTorch, each in its own environment.

    python -m benchmarks.versions                       2.11.0, 2.13.0 and the newest release
    python -m benchmarks.versions 2.12.1 2.14.1         others

Environments are kept in .versions/ (PyPI's torch for Linux brings the CUDA libraries: about 5 GB
each); a second run uses them again. The core is every test that is not marked slow; tests of other
libraries' trainers and models skip themselves. Each version's row replaces its earlier one in
benchmarks/results/versions.csv.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import records
from benchmarks.records import ROOT

RESULTS = records.RESULTS / "versions.csv"
DEFAULT = ["2.11.0", "2.13.0", "newest"]
VERSIONS = (
    "import json, platform, torch, triton; "
    "print(json.dumps([torch.__version__, triton.__version__, platform.python_version()]))"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of the core suite under one version."""

    torch: str
    triton: str
    python: str
    tests: int
    passed: int
    failed: int
    skipped: int
    seconds: int
    failures: str  # names of the first ones
    machine: str = records.stamped("machine")
    commit: str = records.stamped("commit")
    time: str = records.stamped("time")


def environment(version: str, folder: Path) -> Path:
    """The Python of an environment with this torch and the package in place; made if need be."""
    home = folder / version
    python = home / "bin" / "python"
    wanted = "torch" if version == "newest" else f"torch=={version}"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *(["--upgrade"] if version == "newest" else []), wanted], check=True)
    subprocess.run([*pip, "-e", f"{ROOT}[study,test]"], check=True)
    return python


def run(python: Path, workers: int, tests: list[str]) -> Row:
    """The core suite under one interpreter."""
    told = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True)
    torch, triton, release = json.loads(told.stdout.splitlines()[-1])
    xml = python.parent.parent / "core.xml"
    xml.unlink(missing_ok=True)
    begun = time.monotonic()
    command = [str(python), "-m", "pytest", "-q", "-m", "not slow", f"--junitxml={xml}"]
    command += ["-p", "no:cacheprovider", "-n", str(workers), "--dist", "worksteal", *tests]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not xml.exists():
        raise SystemExit(f"torch {torch}: the suite did not run\n{ended.stdout}{ended.stderr}")
    suite = ET.parse(xml).getroot().find("testsuite")
    assert suite is not None
    count = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    bad = [c for c in suite if c.find("failure") is not None or c.find("error") is not None]
    return Row(
        torch=torch,
        triton=triton,
        python=release,
        tests=count["tests"],
        passed=count["tests"] - failed - count["skipped"],
        failed=failed,
        skipped=count["skipped"],
        seconds=round(time.monotonic() - begun),
        failures="; ".join(f"{c.get('classname')}::{c.get('name')}" for c in bad[:5]),
    )


def show(rows: list[Row]) -> Table:
    """The rows as people read them."""
    table = Table(title="core of the test suite")
    columns = [f.name for f in fields(Row) if f.name not in ("machine", "commit", "time")]
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(asdict(row)[column]) for column in columns))
    return table


def main(
    versions: Annotated[list[str] | None, typer.Argument(help="Versions, or newest.")] = None,
    folder: Annotated[Path, typer.Option(help="Where environments are kept.")] = ROOT / ".versions",
    workers: Annotated[int, typer.Option(min=1, help="Test processes.")] = 2,
    tests: Annotated[str, typer.Option(help="Tests to run; empty: all.")] = "",
    out: Annotated[Path, typer.Option(help="The table's file.")] = RESULTS,
) -> None:
    """Run the core of the test suite under several versions of PyTorch."""
    console, rows = Console(width=None if Console().is_terminal else 132), []
    for version in versions or DEFAULT:
        console.print(f"torch {version}: environment")
        python = environment(version, folder)
        console.print(f"torch {version}: tests")
        rows.append(run(python, workers, tests.split()))
        records.replace(out, [asdict(rows[-1])], ("torch",))
        console.print(show(rows[-1:]))
    console.print(show(rows))
    raise typer.Exit(code=any(row.failed or not row.passed for row in rows))


if __name__ == "__main__":
    typer.run(main)
