"""The kernels of real models under several versions of Triton.

    python -m benchmarks.static_check.versions                3.6.0, 3.7.1, 3.8.0 and 3.9.0
    python -m benchmarks.static_check.versions 3.8.0          another choice
    python -m benchmarks.static_check.versions --plain        the plain kernels too

Each version is installed into a folder of its own in .versions/, without its dependencies, and put
in front of this environment's. The models are planned once: their kernels do not depend on Triton,
the machine code does. What was planned and compiled is kept there too, so that a run that was cut
off goes on where it was. A version's rows replace its earlier ones in
benchmarks/results/static_check_versions.csv. Exit status 1 if a kernel spills, or reads or writes
fewer than 16 bytes at a time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import records
from benchmarks.gpu_check.cases import networks
from benchmarks.records import ROOT
from benchmarks.static_check import models
from nmcompile.inductor.hooks import sources_digest

RESULTS = records.RESULTS / "static_check_versions.csv"
DEFAULT = ["3.6.0", "3.7.1", "3.8.0", "3.9.0"]
COLUMNS = ("kernel", "tile", "load bytes", "store bytes", "registers", "spilled", "failures")


def installed(version: str, folder: Path) -> Path:
    """A folder that holds this version of Triton; made if need be."""
    home = folder / f"triton-{version}"
    if not (home / "triton").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(home), f"triton=={version}"], check=True)
    return home


def planned(folder: Path) -> Path:
    """The kernels of all models as a file; planned anew where the package or the models changed."""
    sources = [Path(module.__file__ or "") for module in (models, networks)]
    content = sources_digest().encode() + b"".join(path.read_bytes() for path in sources)
    digest = hashlib.sha256(content + torch.__version__.encode()).hexdigest()[:16]
    specs = folder / f"specs-{digest}.json"
    if not specs.exists():
        records.save(specs, models.to_json(models.specs()))
    return specs


def examined(home: Path, specs: Path, workers: int, plain: bool) -> list[dict[str, str]]:
    """The rows of the static check of these kernels, with the Triton of a folder."""
    table = specs.with_name(f"{home.name}.csv")
    table.unlink(missing_ok=True)
    paths = os.pathsep.join([str(home), str(ROOT), os.environ.get("PYTHONPATH", "")])
    caches = {"TRITON_CACHE_DIR": str(home.with_name(f"{home.name}-cache"))}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.static_check"]
    command += ["--specs", str(specs), "--csv", str(table), "--workers", str(workers)]
    command += ["--arch", "sm_90"] if plain else []
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, **caches},
        capture_output=True,
        text=True,
        check=False,
    )
    if not table.exists():
        raise SystemExit(f"{home.name}: nothing was checked\n{ended.stdout}{ended.stderr}")
    return records.read(table)


def main(
    versions: Annotated[list[str] | None, typer.Argument(help="Of Triton.")] = None,
    folder: Annotated[Path, typer.Option(help="Where they are kept.")] = ROOT / ".versions",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    out: Annotated[Path, typer.Option(help="The table's file.")] = RESULTS,
    plain: Annotated[bool, typer.Option("--plain", help="The plain kernels too.")] = False,
) -> None:
    """Compile the kernels of real models with several versions of Triton; 1 if one is bad."""
    console, bad = Console(), 0
    specs = planned(folder)
    for version in versions or DEFAULT:
        rows = examined(installed(version, folder), specs, workers, plain)
        kept = [{"triton": version, **{c: row[c] for c in COLUMNS}} for row in rows]
        origin = records.origin("commit", "time")
        records.replace(out, [row | origin for row in kept], ("triton",))
        failures = [f"{row['kernel']}: {row['failures']}" for row in kept if row["failures"]]
        most = max((int(row["registers"]) for row in kept), default=0)
        console.print(f"triton {version}: {len(kept)} kernels, at most {most} registers")
        for failure in failures:
            console.print(f"FAILED {failure}", style="red")
        bad += len(failures)
    raise typer.Exit(code=int(bad > 0))


if __name__ == "__main__":
    typer.run(main)
