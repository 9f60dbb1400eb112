"""The accuracy study: what each kind of pruning costs, on models that train on a laptop's CPU.

    python -m benchmarks.accuracy digits      a ResNet and a ViT on 8x8 images
    python -m benchmarks.accuracy text        a GPT on the bytes of Python's standard library
    python -m benchmarks.accuracy all         both
    python -m benchmarks.accuracy plot        tables and plots again, from the CSV files

Writes accuracy_<study>.csv, accuracy_<study>_curves.csv, accuracy_<study>.md and
accuracy_<study>.png. Ctrl-C ends it; the finished runs are then kept in
accuracy_<study>_partial*.csv, and an earlier complete result is left alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import records
from benchmarks.accuracy import plots, summary
from benchmarks.accuracy.results import curve_rows, read_csv, run_rows
from benchmarks.accuracy.studies import ARMS, STUDIES, Study
from benchmarks.accuracy.workers import Job, train

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
) -> None:
    """A ResNet and a ViT on scikit-learn's digits (about 3 minutes)."""
    _study("digits", seeds, arms, networks, steps, workers, out)


@app.command()
def text(
    seeds: Seeds = 3,
    arms: Arms = "",
    steps: Steps = None,
    workers: Workers = _CORES,
    out: Out = _OUT,
) -> None:
    """A GPT on the source of Python's standard library (about 10 minutes)."""
    _study("text", seeds, arms, "", steps, workers, out)


@app.command(name="all")
def everything(
    seeds: Seeds = 3, arms: Arms = "", workers: Workers = _CORES, out: Out = _OUT
) -> None:
    """Both studies."""
    for name in STUDIES:
        _study(name, seeds, arms, "", None, workers, out)


@app.command()
def plot(out: Out = _OUT) -> None:
    """Make tables and plots again from the CSV files in ``--out``."""
    found = [study for study in STUDIES.values() if _path(out, study, ".csv").exists()]
    if not found:
        raise typer.BadParameter(f"there is no accuracy_*.csv in {out}", param_hint="--out")
    for study in found:
        _render(study, out)


def _study(
    name: str,
    seeds: int,
    arms: str,
    networks: str,
    steps: int | None,
    workers: int,
    out: Path,
) -> None:
    study = STUDIES[name]
    chosen = _words(arms, list(ARMS), "--arms") or list(study.arms)
    nets = _words(networks, list(study.networks), "--networks") or list(study.networks)
    jobs = [Job(name, net, arm, tuple(range(seeds)), steps) for arm in chosen for net in nets]
    outcome = train(jobs, workers, console)
    order = [
        (job.network, job.arm) for job in sorted(jobs, key=lambda job: nets.index(job.network))
    ]
    runs = sorted(outcome.runs, key=lambda run: (order.index((run.network, run.arm)), run.seed))
    ending = "_partial" if outcome.stopped else ""
    if runs:
        records.write(_path(out, study, f"{ending}.csv"), run_rows(runs, study.metric))
        records.write(_path(out, study, f"{ending}_curves.csv"), curve_rows(runs, study.metric))
    if outcome.stopped:
        kept = f"kept in {_path(out, study, '_partial.csv')}" if runs else "nothing is written"
        total = sum(len(job.seeds) for job in jobs)
        console.print(f"{outcome.stopped}; {len(runs)} of {total} runs finished: {kept}")
        raise typer.Exit(130 if outcome.stopped == "interrupted" else 1)
    _render(study, out)


def _render(study: Study, out: Path) -> None:
    """Table, Markdown and plot of a study whose CSV files are there."""
    rows = read_csv(_path(out, study, ".csv"))
    curves = read_csv(_path(out, study, "_curves.csv"))
    summary.show(console, study, rows)
    records.save(_path(out, study, ".md"), summary.markdown(study, rows))
    records.save(_path(out, study, ".png"), plots.draw(study, rows, curves))
    console.print(f"written: {_path(out, study, '.*')}", highlight=False)


def _path(out: Path, study: Study, ending: str) -> Path:
    return out / f"accuracy_{study.name}{ending}"


def _words(text: str, known: list[str], option: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise typer.BadParameter(f"{word!r} is none of {', '.join(known)}", param_hint=option)
    return words


if __name__ == "__main__":
    app()
