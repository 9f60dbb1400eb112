"""What N:M sparse training costs in a training step on the CPU, against ``backend="inductor"``.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --only step,memory --rounds 30
    python -m benchmarks.training_step --quick --out /tmp/quick.csv

The step is forward, loss, backward, SGD and zero_grad, of a GPT and, in sections of their own, of
three vision networks; masks are simulated. Every figure is a ratio to the dense step of the same
run. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import sections, vision
from benchmarks.gpt import FULL, QUICK
from benchmarks.records import RESULTS as FOLDER
from benchmarks.sections import Setup
from benchmarks.table import Row, show, write_csv

SECTIONS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "bitwise": sections.bitwise,
    "step": sections.step,
    "eager": sections.eager,
    **{name: sections.network(name) for name in vision.FULL},
    "memory": sections.memory,
    "compile": sections.compilation,
}
#: Those that start no process with a cold cache, each of which compiles for half a minute.
QUICK_SECTIONS = ("bitwise", "step", "eager")
RESULTS = FOLDER / "training_step_cpu.csv"
app = typer.Typer(add_completion=False)


def _chosen(only: str, quick: bool) -> list[str]:
    everything = QUICK_SECTIONS if quick else tuple(SECTIONS)
    names = [name.strip() for name in only.split(",") if name.strip()] or list(everything)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        known = ", ".join(SECTIONS)
        raise typer.BadParameter(f"{unknown[0]!r} is not a section: choose from {known}")
    return names


@app.command(help=__doc__)
def main(
    only: Annotated[str, typer.Option(help=f"Sections, of: {', '.join(SECTIONS)}.")] = "",
    out: Annotated[Path, typer.Option(help="CSV; rows of other sections are kept.")] = RESULTS,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each variant's step.")] = 15,
    depths: Annotated[str, typer.Option(help="Numbers of blocks to compile.")] = "1,3,6",
    threads: Annotated[int, typer.Option(help="0 = PyTorch's default.")] = 0,
    quick: Annotated[
        bool, typer.Option(help="Small shapes, meaningless figures, fewer sections.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Fail when any target is missed.")] = False,
) -> None:
    chosen = _chosen(only, quick)
    if threads:
        torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # every variant compiles the same forward
    console = Console(width=140)
    _warn_of_load(console)
    columns = [SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn()]
    rows: list[Row] = []
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        setup = Setup(FULL, tuple(map(int, depths.split(","))), rounds, progress, vision.FULL)
        if quick:
            small = ("full", "dense")
            setup = Setup(QUICK, (1,), 1, progress, vision.QUICK, recipes=small, quick=True)
        finished: list[str] = []
        try:
            for name in chosen:
                torch._dynamo.reset()
                found = list(SECTIONS[name](setup))
                finished.append(name)
                rows += found
                progress.console.print(f"finished: {name}")
                write_csv(out, rows)
        except KeyboardInterrupt:
            progress.console.print("interrupted: finished sections are kept")
    if rows:
        show(rows, console)
        console.print(f"written to {out}")
    missed = [row for row in rows if row.missed]
    for row in missed:
        console.print(f"missed: {row.mode} {row.provider} {row.metric} must be {row.target}")
    unequal = any(row.mode == "bitwise" for row in missed)
    if unequal or (check and missed) or len(finished) < len(chosen):
        raise typer.Exit(1)


def _warn_of_load(console: Console) -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 4:
        console.print(f"[yellow]load average {load:.1f} on {cores} cores: expect noise[/yellow]")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*TensorFloat32.*")
    app()
