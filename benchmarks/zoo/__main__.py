"""Compile, check and train tiny models of many architectures, offline, with random weights.

    python -m benchmarks.zoo                  # all; writes results/zoo.csv and docs/zoo.md
    python -m benchmarks.zoo llama mixtral    # some: their rows are replaced
    python -m benchmarks.zoo --list
    python -m benchmarks.zoo --reports DIR    # what is decided, as JSON; nothing is compiled

It needs ``pip install nmcompile[integrations,study]``. The exit status is 1 when a check fails;
nothing is written for a model that fails.
"""

from __future__ import annotations

import difflib
import time
import warnings
from pathlib import Path
from typing import Annotated

import torch
import torch._functorch.config
import torch._inductor.config
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import records
from benchmarks.zoo import ENTRIES, table
from benchmarks.zoo.check import check
from benchmarks.zoo.reports import write_reports

app = typer.Typer(add_completion=False)


def chosen(names: list[str]) -> list[str]:
    """The entries to run, all if none is named.

    Raises:
        typer.BadParameter: names what is unknown and the nearest entry.
    """
    for name in names:
        if name not in ENTRIES:
            near = difflib.get_close_matches(name, ENTRIES, 1, 0.4)
            hint = f"did you mean {near[0]!r}?" if near else "--list shows all"
            raise typer.BadParameter(f"{name!r} is no model of the zoo: {hint}")
    return [name for name in ENTRIES if name in names or not names]


@app.command(help=__doc__)
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all if none.")] = None,
    out: Annotated[Path, typer.Option(help="The CSV.")] = table.RESULTS,
    page: Annotated[Path, typer.Option(help="The page written from the CSV.")] = table.PAGE,
    reports: Annotated[
        Path | None, typer.Option(help="Write the reports into this folder; check nothing.")
    ] = None,
    list_models: Annotated[bool, typer.Option("--list", help="List the models and stop.")] = False,
) -> None:
    console = Console(width=150, highlight=False)
    if list_models:
        _list(console)
        return
    if reports is not None:
        for name in chosen(names or []):
            paths = write_reports(ENTRIES[name], reports)
            console.print(f"written: {', '.join(map(str, paths))}", markup=False)
        return
    torch.set_num_threads(1)
    # A second run would find its graphs and measure no compilation.
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    columns = [SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn()]
    failed = []
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        _warm_up()
        names = chosen(names or [])
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            start = time.monotonic()
            outcome = check(ENTRIES[name])
            seconds = time.monotonic() - start
            for failure in outcome.failures:
                progress.console.print(f"{name}: {failure}", style="red", markup=False)
            if outcome.failures:
                failed.append(name)
            else:
                rows = table.write(out, [table.row(outcome)], list(ENTRIES))
                records.save(page, table.page(rows))
                text = f"{name}: {len(outcome.report.sites)} products, {seconds:.0f} s"
                progress.console.print(text, markup=False)
            progress.advance(task)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
        raise typer.Exit(1)
    console.print(f"written to {out} and {page}")


def _list(console: Console) -> None:
    listing = Table("model", "family", "note")
    for entry in ENTRIES.values():
        listing.add_row(entry.name, entry.family, entry.note)
    console.print(listing)


def _warm_up() -> None:
    """What the first compilation of a process pays alone is no model's cost."""
    for policy in ("dense", "full"):
        torch._dynamo.reset()
        layer = torch.nn.Linear(16, 16)
        run = torch.compile(layer, backend="nm_sparse", options={"policy": policy})
        run(torch.randn(16, 16)).sum().backward()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    app()
