"""Random networks under random policies, compared with eager PyTorch.

    python -m fuzzing --count 2000 --seed 0
    python -m fuzzing --minutes 60 --compiled-share 0.05
    python -m fuzzing --replay 17

A run can be interrupted; the same command goes on where it stopped. See ``docs/fuzzing.md``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch
import typer
from rich.console import Console

from benchmarks import records
from fuzzing.campaign import Summary
from fuzzing.case import Case
from fuzzing.checks import check
from fuzzing.supervisor import Run, supervise

app = typer.Typer(add_completion=False)


@app.command(help=__doc__)
def main(
    count: Annotated[int, typer.Option(help="Networks; 0 = no limit.")] = 2000,
    seed: Annotated[int, typer.Option(help="The first one.")] = 0,
    minutes: Annotated[float, typer.Option(help="Stop after this time; 0 = no limit.")] = 0,
    compiled_share: Annotated[float, typer.Option(help="Share with code generation.")] = 0.05,
    finds: Annotated[Path, typer.Option(help="Folder for scripts and the summary.")] = Path(
        "fuzz_finds"
    ),
    csv: Annotated[Path | None, typer.Option(help="Add the run to this file.")] = None,
    replay: Annotated[int | None, typer.Option(help="Check this seed alone, and print it.")] = None,
    shrink_seconds: Annotated[float, typer.Option(help="Time to make one find small.")] = 120,
) -> None:
    console = Console(emoji=False)  # "N:M:" is a count
    torch.set_num_threads(1)
    if replay is not None:
        case = Case.of(replay, compiled_share)
        console.print(case.network.render(), markup=False, highlight=False)
        console.print(case.rules, case.kind, "compiled" if case.compiled else "planned")
        console.print(check(case))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run = Run(count or None, minutes or None, compiled_share, seed, finds, shrink_seconds)
    try:
        supervise(run, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on here")
    finally:
        summary = Summary.at(finds, seed, compiled_share)
        row = summary.row()
        if csv is not None:
            records.replace(csv, [row], ("seeds", "commit"))
        for name, value in row.items():
            console.print(f"{name:16} {value}", markup=False, highlight=False)
    raise typer.Exit(1 if summary.finds else 0)


if __name__ == "__main__":
    app()
