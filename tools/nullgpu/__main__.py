"""Rehearse the GPU path on a GPU that does nothing: ``make rehearse``.

    sections   gpu_check from end to end: each case must come to its end (its checks of values fail,
               as they must), with no call that a GPU refuses and no kernel that spills
    steps      a Llama-like layer: memory, launches, waits and inputs, against dense
    masks      every kind of mask: launches and waits, also inside of a CUDA graph
    others     a small layer on GPUs of other compute capabilities, and on the second of two
    compiling  what the first steps of the Llama-like layer cost the host, over dense

The exit status is 1 when an expectation fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.nullgpu import compiling, others
from tools.nullgpu.expectations import Measured, count, show
from tools.nullgpu.log import read

PARTS = ("sections", "steps", "masks", "others", "compiling")
app = typer.Typer(add_completion=False)


@app.command(help=__doc__)
def main(
    parts: Annotated[str, typer.Option(help=f"Of: {', '.join(PARTS)}.")] = ",".join(PARTS),
    section: Annotated[str, typer.Option(help="Sections of gpu_check; all that it runs.")] = "",
    minutes: Annotated[float, typer.Option(help="For gpu_check, which compiles here.")] = 90,
    cache: Annotated[Path | None, typer.Option(help="Where compiled kernels are kept.")] = None,
) -> None:
    if "LD_PRELOAD" not in os.environ:
        raise typer.BadParameter("there is no null GPU here: use make rehearse")
    console, start = Console(width=140, highlight=False), time.monotonic()
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="nullgpu_", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        if "sections" in parts:
            found += _sections(section, minutes, cache, Path(folder), log)
        # Before torch is imported, which opens the log: it is this process's alone.
        os.environ["NULL_LOG"] = str(Path(folder) / "own")
        if "steps" in parts:
            from tools.nullgpu import steps

            found += steps.expectations()
        if "masks" in parts:
            from tools.nullgpu import masks

            found += masks.expectations()
        own = read(Path(folder) / "own")
        found.append(_spills("layer and masks", own.spills))
        if "others" in parts:
            found += others.expectations(Path(folder))
        if "compiling" in parts:
            found += compiling.expectations()
    holds = show(found, console)
    console.print(f"{time.monotonic() - start:.0f} s")
    raise typer.Exit(0 if holds else 1)


def _sections(
    section: str, minutes: float, cache: Path | None, folder: Path, log: Path
) -> Iterator[Measured]:
    """gpu_check, in its own processes."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(folder / "out")]
    command += [
        "--minutes",
        str(minutes),
        "--lanes",
        "1",
        *(["--section", section] if section else []),
    ]
    command += ["--cache", str(cache)] if cache else []
    # A loss that is read is 1, and not 0: ratios of losses are numbers.
    subprocess.run(command, env={**os.environ, "NULL_LOG": str(log), "NULL_ONE": "1"}, check=False)
    files = [p for p in (folder / "out").glob("gpu_check_*.json") if "sections" in p.read_text()]
    broken = ["gpu_check wrote nothing"] if not files else list(_broken(files[0]))
    yield count("cases that end in an error", "gpu_check", broken)
    found = read(log)
    yield count("calls that a GPU refuses", "gpu_check", found.faults)
    yield _spills("gpu_check", found.spills)


def _broken(file: Path) -> Iterator[str]:
    """Cases that did not come to their end, or that could not run what they are about."""
    for name, section in json.loads(file.read_text())["sections"].items():
        for case, record in section["cases"].items():
            place = f"{name}/{case}"
            if record["status"] not in ("ok", "failed"):
                yield f"{place}: {record['status']} {record['error'].strip()[-300:]}"
            for check in record["checks"]:
                if check["name"].endswith(": runs") and not check["passed"]:
                    yield f"{place}: {check['detail'].strip()[-300:]}"


def _spills(where: str, spills: dict[str, int]) -> Measured:
    lines = [f"{name} {spilled} bytes" for name, spilled in spills.items() if spilled]
    return count("kernels that spill", where, lines)


if __name__ == "__main__":
    app()
