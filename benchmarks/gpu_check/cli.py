"""Whether nmcompile is right and fast on one GPU, in less than 7 minutes, unattended.

    python3 -m benchmarks.gpu_check                               # all that decides
    python3 -m benchmarks.gpu_check --section gain,verdict        # parts; tiles, recipes too
    python3 -m benchmarks.gpu_check --only "llama/*"              # single cases
    python3 -m benchmarks.gpu_check --cache carried               # with kernels compiled before
    python3 -m benchmarks.gpu_check --rehearse                    # on the CPU, tiny sizes

Figures go to benchmarks/results/gpu_check_GPU.json and .csv, and to $OUT where that is set, as they
are measured, and what the workers wrote to $OUT/gpu_check.log. The exit status is 1 when a check of
correctness fails or a case breaks, and 2 when nothing can be run.
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
from benchmarks.gpu_check.caches import settle
from benchmarks.gpu_check.device import Rehearsal
from benchmarks.gpu_check.events import Case, Event, Results, refuse_stand_in
from benchmarks.gpu_check.supervise import deadlines, supervise
from benchmarks.gpu_check.targets import FLOOR, GAIN, SPARSE, STEP, verdict
from benchmarks.gpu_check.worker import run_cases
from benchmarks.records import RESULTS, commit, save

#: Seconds of each section, what decides most first; benchmarks/README.md says why.
BUDGETS = {
    "gain": 40.0,
    "llama": 125.0,
    "large": 45.0,
    "compress": 8.0,
    "host": 5.0,
    "graphs": 50.0,
    "gpt2": 62.0,
    "probe": 8.0,
    "kernels": 30.0,
    "resnet": 45.0,
}
#: Of those that run where they are named alone.
MORE = {"products": 95.0, "recipes": 240.0, "tiles": 20.0, "accuracy": 240.0}
_RESERVE = 8.0  # seconds to end and to write
_SAVE_EVERY = 1.0
#: Figures that are shown when they come; the others lie in the files.
_SHOWN = (GAIN, STEP, SPARSE, FLOOR)
app = typer.Typer(add_completion=False)


def choose(section: str, only: str, rehearse: bool) -> list[Case]:
    """The cases to run.

    Raises:
        typer.BadParameter: for an unknown section, and when nothing is chosen.
    """
    known = (*BUDGETS, *MORE, "verdict")
    names = [name.strip() for name in section.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not a section: choose from {', '.join(known)}")
    named = [name for name in known if fnmatch.fnmatch(f"{name}/", only.partition("/")[0] + "/")]
    names = names or (named if only else [*BUDGETS, "verdict"])
    chosen = [
        case
        for case in cases.all_cases(rehearse, names)
        if not only or fnmatch.fnmatch(case.key, only)
    ]
    if not chosen and names != ["verdict"]:
        raise typer.BadParameter(f"no case matches {only!r}")
    return chosen


def folders(out: Path | None, rehearse: bool) -> list[Path]:
    """Where to write: ``out`` or benchmarks/results, and ``$OUT``; a rehearsal not there."""
    if rehearse:
        folder = out or Path(tempfile.mkdtemp(prefix="gpu_check_rehearsal_"))
        try:
            refuse_stand_in(True, "", folder)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return [folder]
    elsewhere = os.environ.get("OUT")
    return [out or RESULTS, *([Path(elsewhere)] if elsewhere else [])]


@app.command(help=__doc__)
def main(
    section: Annotated[
        str, typer.Option(help=f"Of: {', '.join((*BUDGETS, *MORE))}, verdict.")
    ] = "",
    only: Annotated[str, typer.Option(help="A pattern of SECTION/CASE.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON and the CSV.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="For everything.")] = 7.0,
    cache: Annotated[Path | None, typer.Option(help="Folder of compiled kernels.")] = None,
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
    budgets = (BUDGETS | MORE).items()
    results = Results(rehearse, {n: b for n, b in budgets if n in {c.section for c in chosen}})
    if chosen:
        run = _Run(chosen, results, where, start + minutes * 60 - _RESERVE, console, cache)
        run.all(start, lanes, inline)
        if run.refused:
            raise typer.BadParameter(run.refused)
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


class _Run:
    """A run: takes the events, saves and shows what they bring."""

    def __init__(
        self,
        chosen: list[Case],
        results: Results,
        where: list[Path],
        end: float,
        console: Console,
        cache: Path | None,
    ) -> None:
        self.chosen, self.results, self.where, self.console = chosen, results, where, console
        self.cache, self.end, self.saved, self.refused = cache, end, 0.0, ""
        self.job: dict[str, Any] = {"rehearsal": results.rehearsal, "commit": commit(), "end": end}
        self.folder: Path | None = None

    def all(self, start: float, lanes: int, inline: bool) -> None:
        """Run every case; here where ``inline``."""
        budgets = {n: self.results.sections[n]["budget"] for n in self.results.chosen}
        ends = self.job["deadlines"] = deadlines(start, self.end - start, budgets)
        # Who gives more time than a GPU takes has a slow machine, and compiles on it.
        self.job["patience"] = max(1.0, (self.end - start) / sum(budgets.values()))
        if inline:
            run_cases(self.chosen, Rehearsal(), ends, self.receive, self.job["commit"])
            return
        lanes = lanes or max(1, min(8, (os.cpu_count() or 1) // 2))
        with tempfile.TemporaryDirectory(prefix="gpu_check_", ignore_cleanup_errors=True) as name:
            self.folder = Path(name)
            caches = self.folder if self.cache is None else self.cache.resolve()
            if self.cache is not None:
                self.job["caches"] = settle(caches / "triton")
                self.console.print(self.job["caches"], markup=False)
            try:
                supervise(self.chosen, self.job, self.folder, caches, self.receive, lanes)
            finally:
                self._save_log()

    def receive(self, event: Event) -> None:
        """Take in an event, from any thread."""
        self.results.receive(event)
        if event["kind"] == "environment":
            self._refuse_null_gpu()
            self.results.load_earlier(self.where[0])
        if event["kind"] == "row" and event["row"]["metric"] in _SHOWN:
            row = event["row"]
            text = f"  {row['provider']}, {row['x']}, {row['config']}: {row['metric']}"
            ratio = row.get("ratio_to_inductor")
            over = "" if ratio is None else f", {ratio:.3f} of dense"
            self.console.print(f"{text} {row['p50']:.4g}{over}", markup=False)
        if event["kind"] == "end":
            self._show_end(event)
        due = event["kind"] == "end" or time.monotonic() > self.saved + _SAVE_EVERY
        if due and self.results.environment and not self.refused:
            self.saved = time.monotonic()
            self.results.save(self.where)
        if event["kind"] == "end":
            self._save_log()

    def _refuse_null_gpu(self) -> None:
        """End the run where its files would be taken for a GPU's."""
        gpu = str(self.results.environment.get("gpu"))
        try:
            for folder in self.where:
                refuse_stand_in(self.results.rehearsal, gpu, folder)
        except ValueError as error:
            self.refused, self.job["end"] = str(error), 0.0

    def _show_end(self, event: Event) -> None:
        last = event["error"].strip().splitlines()[-1:] if event["error"] else []
        status = self.results.sections[event["section"]]["cases"][event["case"]]["status"]
        text = f"{event['section']}/{event['case']}: {status}"
        text += f" {event['seconds']:.1f} s " + "".join(last)[:100]
        self.console.print(text, markup=False)

    def _save_log(self) -> None:
        """What the workers wrote: beside the copy, for who cannot look into this folder."""
        if self.folder is None or not (elsewhere := self.where[1:]):
            return
        logs = sorted(self.folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
        text = "\n".join(f"---- {x.name}\n{x.read_text(errors='replace')[-50_000:]}" for x in logs)
        for folder in elsewhere:
            save(folder / "gpu_check.log", text)


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
