"""Whether nmcompile is right and fast on one GPU, in less than 9 minutes, unattended.

    python3 -m benchmarks.gpu_check                               # everything
    python3 -m benchmarks.gpu_check --section products,verdict    # parts
    python3 -m benchmarks.gpu_check --only "training/llama*"      # single cases
    python3 -m benchmarks.gpu_check --rehearse                    # on the CPU, tiny sizes

Figures go to benchmarks/results/gpu_check_GPU.json and .csv, and to $OUT where that is set, after
every case. The exit status is 1 when a check of correctness fails or a case breaks, and 2 when
nothing can be run.
"""

from __future__ import annotations

import fnmatch
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.device import Rehearsal
from benchmarks.gpu_check.events import Case, Event, Results, refuse_rehearsal_in_results
from benchmarks.gpu_check.supervise import deadlines, supervise
from benchmarks.gpu_check.targets import verdict
from benchmarks.gpu_check.worker import run_cases
from benchmarks.records import RESULTS, commit

#: Seconds of each section on an H200; benchmarks/README.md says why.
BUDGETS = {"probe": 15.0, "kernels": 90.0, "products": 95.0, "training": 310.0}
_RESERVE = 8.0  # seconds to end and to write
app = typer.Typer(add_completion=False)


def choose(section: str, only: str, rehearse: bool) -> list[Case]:
    """The cases to run.

    Raises:
        typer.BadParameter: for an unknown section, and when nothing is chosen.
    """
    names = [name.strip() for name in section.split(",") if name.strip()] or [*BUDGETS, "verdict"]
    for name in names:
        if name not in (*BUDGETS, "verdict"):
            known = ", ".join((*BUDGETS, "verdict"))
            raise typer.BadParameter(f"{name!r} is not a section: choose from {known}")
    chosen = [
        case
        for case in cases.all_cases(rehearse)
        if case.section in names and (not only or fnmatch.fnmatch(case.key, only))
    ]
    if not chosen and names != ["verdict"]:
        raise typer.BadParameter(f"no case matches {only!r}")
    return chosen


def folders(out: Path | None, rehearse: bool) -> list[Path]:
    """Where to write: ``out`` or benchmarks/results, and ``$OUT``; a rehearsal not there."""
    if rehearse:
        folder = out or Path(tempfile.mkdtemp(prefix="gpu_check_rehearsal_"))
        try:
            refuse_rehearsal_in_results(True, folder)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return [folder]
    elsewhere = os.environ.get("OUT")
    return [out or RESULTS, *([Path(elsewhere)] if elsewhere else [])]


@app.command(help=__doc__)
def main(
    section: Annotated[str, typer.Option(help=f"Of: {', '.join(BUDGETS)}, verdict.")] = "",
    only: Annotated[str, typer.Option(help="A pattern of SECTION/CASE.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON and the CSV.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="For everything.")] = 9.0,
    lanes: Annotated[int, typer.Option(min=0, help="Workers side by side; 0: by cores.")] = 0,
    rehearse: Annotated[bool, typer.Option(help="Tiny sizes on the CPU.")] = False,
    inline: Annotated[bool, typer.Option(help="In this process; only to rehearse.")] = False,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
) -> None:
    start = time.monotonic()
    chosen = choose(section, only, rehearse)
    console = Console(width=150, highlight=False)
    if list_cases:
        for case in chosen:
            console.print(case.key, markup=False)
        return
    if inline and not rehearse:
        raise typer.BadParameter("--inline is for --rehearse: it cannot end a case that hangs")
    where = folders(out, rehearse)
    results = Results(
        rehearse, {n: b for n, b in BUDGETS.items() if n in {c.section for c in chosen}}
    )
    if chosen:
        _run(chosen, results, where, start, minutes * 60 - _RESERVE, lanes, inline, console)
    if not results.environment:
        if chosen or rehearse:
            _show_failures(results, console)
            console.print("no worker came as far as to describe the device", style="red")
            raise typer.Exit(2)
        results.environment = _earlier_environment(where[0])
        results.load_earlier(where[0])
    lines = [] if rehearse else verdict(results.rows())
    written = results.save(where, lines)
    _show(results, lines, console)
    console.print(f"{time.monotonic() - start:.0f} s; written to {', '.join(map(str, written))}")
    if not results.sound:
        raise typer.Exit(1)


def _run(
    chosen: list[Case],
    results: Results,
    where: list[Path],
    start: float,
    total: float,
    lanes: int,
    inline: bool,
    console: Console,
) -> None:
    def receive(event: Event) -> None:
        results.receive(event)
        if event["kind"] == "environment":
            results.load_earlier(where[0])
        if event["kind"] == "end":
            if results.environment:
                results.save(where)
            last = event["error"].strip().splitlines()[-1:] if event["error"] else []
            status = results.sections[event["section"]]["cases"][event["case"]]["status"]
            text = f"{event['section']}/{event['case']}: {status}"
            text += f" {event['seconds']:.1f} s " + "".join(last)[:100]
            console.print(text, markup=False)

    ends = deadlines(start, total, {n: results.sections[n]["budget"] for n in results.chosen})
    if {"probe", "kernels"} <= ends.keys():
        ends["probe"] = ends["kernels"]  # they run side by side
    job: dict[str, Any] = {"rehearsal": results.rehearsal, "commit": commit()}
    job |= {"deadlines": ends, "end": start + total}
    if inline:
        run_cases(chosen, Rehearsal(), ends, receive, job["commit"])
        return
    lanes = lanes or max(1, min(8, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory(prefix="gpu_check_", ignore_cleanup_errors=True) as folder:
        supervise(chosen, job, Path(folder), receive, lanes)
        # Warnings and the like: beside the copy for who cannot look into this folder.
        logs = [log.read_text(errors="replace")[-50_000:] for log in Path(folder).glob("*.log")]
        for elsewhere in where[1:] if results.environment else ():
            (elsewhere / f"{results.stem}.log").write_text("\n----\n".join(logs))


def _earlier_environment(folder: Path) -> dict[str, Any]:
    """For a verdict alone: of the GPU whose results in ``folder`` are newest."""
    found = sorted(folder.glob("gpu_check_*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise typer.BadParameter(f"nothing to judge in {folder}")
    return dict(json.loads(found[-1].read_text())["environment"])


def _show_failures(results: Results, console: Console) -> None:
    for section, name, case in results.cases():
        for check in case["checks"]:
            if not check["passed"]:
                text = f"{section}/{name}: {check['name']}: "
                # The end of a traceback says most.
                console.print(text + check["detail"][-400:], style="red", markup=False)
        if case["status"] in ("error", "crashed"):
            text = f"{section}/{name}: {case['status']}\n{case['error'][-600:]}"
            console.print(text, style="red", markup=False)


def _show(results: Results, lines: list[dict[str, Any]], console: Console) -> None:
    """Failures, the figures that the training steps gave, the verdict."""
    _show_failures(results, console)
    table = Table(title="sections", title_justify="left", pad_edge=False)
    for column in ("section", "cases", "ok", "skipped", "not ok", "checks", "seconds / budget"):
        table.add_column(column, justify="left" if column == "section" else "right")
    for name, record in results.sections.items():
        found = record["cases"].values()
        status = [case["status"] for case in found]
        ok, skipped = status.count("ok"), status.count("skipped")
        checks = sum(len(case["checks"]) for case in found)
        times = f"{record['seconds']:.0f} / {record['budget']:.0f}"
        counts = (len(status), ok, skipped, len(status) - ok - skipped, checks)
        table.add_row(name, *map(str, counts), times)
    console.print(table)
    if not lines:
        return
    table = Table(title="verdict", title_justify="left", pad_edge=False)
    for column in ("target", "result", "figure"):
        table.add_column(column, no_wrap=True)
    for line in lines:
        style = {"PASS": "green", "FAIL": "red"}.get(line["result"], "yellow")
        table.add_row(line["target"], line["result"], line["figure"], style=style)
    console.print(table)
