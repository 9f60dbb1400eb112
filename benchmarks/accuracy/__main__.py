"""The accuracy study: what each kind of pruning costs, on models that train on a laptop's CPU.

    python -m benchmarks.accuracy digits      a ResNet and a ViT on 8x8 images
    python -m benchmarks.accuracy fashion     the same on Fashion-MNIST, or --data FOLDER
    python -m benchmarks.accuracy text        a GPT on the bytes of Python's standard library
    python -m benchmarks.accuracy plot        tables and plots again, from the CSV files

Writes accuracy_<study>.csv, _curves.csv, _gradients.csv, .md and .png, and from all studies that
are there accuracy_claims.md and accuracy_pareto.png. A run is written when it is finished: the same
command goes on where an earlier one was interrupted. Runs of other settings are never mixed in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import records
from benchmarks.accuracy import jobs, render
from benchmarks.accuracy.results import Store, key_of
from benchmarks.accuracy.studies import STUDIES
from benchmarks.accuracy.workers import train

app = typer.Typer(
    help="What each kind of pruning costs, on models that train on a laptop's CPU.",
    no_args_is_help=True,
    add_completion=False,
)
# Where the output is no terminal, tables are as wide as they need to be.
console = Console(width=None if Console().is_terminal else 132)

Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds, 0 upwards.")]
Arms = Annotated[str, typer.Option(help="Arms to train, separated by commas; empty: all.")]
Networks = Annotated[str, typer.Option(help="Networks to train, separated by commas; empty: all.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Updates per run instead of the default.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")]
Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Replace = Annotated[bool, typer.Option("--replace", help="Drop runs of other settings.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder of MNIST's files (IDX) or CIFAR-10's binary ones.")
]

_CORES = min(8, os.cpu_count() or 1)
_OUT = records.RESULTS


@app.command()
def digits(
    seeds: Seeds = 3,
    arms: Arms = "",
    networks: Networks = "",
    steps: Steps = None,
    workers: Workers = _CORES,
    out: Out = _OUT,
    replace: Replace = False,
) -> None:
    """Two ResNets and a ViT on scikit-learn's digits (4 minutes on 2 cores)."""
    _study("digits", None, seeds, arms, networks, steps, workers, out, replace)


@app.command()
def fashion(
    seeds: Seeds = 3,
    arms: Arms = "",
    networks: Networks = "",
    steps: Steps = None,
    workers: Workers = _CORES,
    out: Out = _OUT,
    replace: Replace = False,
    data: Data = None,
) -> None:
    """Two ResNets and a ViT on Fashion-MNIST (hours)."""
    _study("fashion", data, seeds, arms, networks, steps, workers, out, replace)


@app.command()
def text(
    seeds: Seeds = 3,
    arms: Arms = "",
    steps: Steps = None,
    workers: Workers = _CORES,
    out: Out = _OUT,
    replace: Replace = False,
) -> None:
    """A GPT on the source of Python's standard library (an hour)."""
    _study("text", None, seeds, arms, "", steps, workers, out, replace)


@app.command()
def plot(out: Out = _OUT) -> None:
    """Make tables and plots again from the CSV files in ``--out``."""
    stores = [Store(out, study) for study in STUDIES.values()]
    found = [store for store in stores if store.rows()]
    if not found:
        raise typer.BadParameter(f"there is no accuracy_*.csv in {out}", param_hint="--out")
    for store in found:
        render.study(store, console)
    render.together(out, console)


def _study(
    name: str,
    data: Path | None,
    seeds: int,
    arms: str,
    networks: str,
    steps: int | None,
    workers: int,
    out: Path,
    replace: bool,
) -> None:
    store = Store(out, STUDIES[name])
    try:
        asked = jobs.asked(store, _words(networks), _words(arms), seeds, steps, data)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    _refuse_others(store, asked, replace)
    left = jobs.left(store, asked)
    total, missing = (sum(len(job.seeds) for job in some) for some in (asked, left))
    if missing < total:
        commits = ", ".join(dict.fromkeys(row["commit"] for row in store.rows()))
        console.print(
            f"{store.path('.csv')} has {total - missing} of the {total} runs (commit {commits}; "
            f"this is {records.commit()}); {missing} are left",
            highlight=False,
        )
    outcome = train(left, workers, console, lambda job, run: store.keep(run, job.columns()))
    for failure in outcome.failed:
        console.print(failure, markup=False, highlight=False)
    if outcome.interrupted or outcome.failed:
        reason = "interrupted" if outcome.interrupted else "not all arms could be trained"
        console.print(
            f"{reason}; {total - missing + outcome.finished} of {total} runs are in "
            f"{store.path('.csv')}: the same command goes on from there",
            highlight=False,
        )
        raise typer.Exit(130 if outcome.interrupted else 1)
    render.study(store, console)
    render.together(out, console)


def _refuse_others(store: Store, asked: list[jobs.Job], replace: bool) -> None:
    """Runs that were trained in another way are an error, or dropped."""
    others = jobs.others(store, asked)
    if others and not replace:
        steps = sorted({int(row["steps"]) for row in others})
        raise typer.BadParameter(
            f"{store.path('.csv')} has {len(others)} runs of other settings (steps {steps}, now "
            f"{sorted({job.steps for job in asked})}; or other data, networks or policies), such "
            f"as {others[0]['network']} {others[0]['arm']}: give another --out, or --replace to "
            "drop them"
        )
    if others:
        store.drop(map(key_of, others))
        console.print(f"{len(others)} runs of other settings are dropped", highlight=False)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    app()
