"""Command line of the static check; exit status 1 if a kernel fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import records
from benchmarks.static_check import models
from benchmarks.static_check.cases import LAYOUTS, Case, all_cases
from benchmarks.static_check.model import SIDE, Result, examine
from benchmarks.static_check.throughput import DEVICES
from nmcompile.codegen import loader

RESULTS = records.RESULTS / "static_check.csv"
COLUMNS = (
    "arch", "kernel", "tile", "load bytes", "store bytes", "registers", "spilled", "shared",
    "instructions", "weighted", "pipe", "bytes floor", "time us", "ratio",
)  # fmt: skip


def row(result: Result) -> tuple[str, ...]:
    """The cells of one kernel, in the order of ``COLUMNS``."""
    case, machine = result.case, result.machine
    tile = f"{case.shape.rows}x{case.shape.columns}/{case.shape.warps}"
    return (
        case.arch, case.name, tile, str(result.load_width), str(result.store_width),
        str(machine.registers), str(machine.spilled), str(machine.shared),
        f"{result.instructions:.2f}", f"{result.weighted:.2f}", result.pipe,
        f"{result.bytes_floor:g}",
        "" if result.microseconds is None else f"{result.microseconds:.1f}",
        "" if result.ratio is None else f"{result.ratio:.2f}",
    )  # fmt: skip


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """One line a kernel, with Triton's version and the failures."""
    rows = (
        {**dict(zip(COLUMNS, row(result), strict=True)), "failures": "; ".join(result.failures)}
        for result in results
    )
    records.write(path, ({**cells, **records.origin("triton")} for cells in rows))


def show(results: Sequence[Result], console: Console) -> None:
    """A table, and what failed."""
    table = Table(*COLUMNS, title=f"per element of the operand; time for {SIDE} x {SIDE}")
    for result in results:
        table.add_row(*row(result), style="red" if result.failures else None)
    console.print(table)
    for arch, device in DEVICES.items():
        console.print(
            f"{arch}: {device.name}, {device.multiprocessors} multiprocessors at "
            f"{device.clock / 1e9:g} GHz, {device.bandwidth / 1e12:g} TB/s; no time is predicted "
            "for other architectures, which are checked for spills and widths alone"
        )
    for result in results:
        for failure in result.failures:
            console.print(f"FAILED {result.case.arch} {result.case.name}: {failure}", style="red")


def write_sources(folder: Path, cases: Iterable[Case]) -> None:
    """One file a printed kernel: to compare what two versions of the package generate."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        path = folder / f"{case.source_name.replace(':', '_')}.py"
        path.write_text(loader.kernel_path(case.spec).read_text())


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases of a command line."""
    if options.specs:
        found = models.from_json(options.specs.read_text())
        cases = all_cases(tuple(options.arch or ()))
        return cases + [Case.of("sm_90", spec, model) for spec, model in found.items()]
    cases = all_cases(tuple(options.arch or LAYOUTS))
    which = options.models or ("none" if options.kernel or options.sources else "few")
    if which != "none" and "sm_90" in (options.arch or LAYOUTS):
        found = models.specs(*models.FEW) if which == "few" else models.specs()
        cases += [Case.of("sm_90", spec, model) for spec, model in found.items()]
    return [case for case in cases if options.kernel in case.name]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.static_check", description=__doc__)
    found.add_argument("--arch", action="append", choices=sorted(LAYOUTS), help="default: all")
    found.add_argument("--kernel", default="", help="only kernels whose name contains this")
    found.add_argument("--csv", type=Path, help=f"default when all are checked: {RESULTS.name}")
    found.add_argument(
        "--sources", type=Path, metavar="DIR", help="write the printed kernels there; no check"
    )
    found.add_argument(
        "--models", choices=("none", "few", "all"), help="whose kernels are checked on sm_90 too"
    )
    found.add_argument(
        "--specs", type=Path, metavar="FILE", help="kernels of models.to_json, and those of --arch"
    )
    found.add_argument("--workers", type=int, default=2)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the kernels; 1 if one fails."""
    options = parser().parse_args(arguments)
    cases = chosen(options)
    if not cases:
        parser().error(f"no kernel's name contains {options.kernel!r}")
    if options.sources:
        write_sources(options.sources, cases)
        return 0
    with ProcessPoolExecutor(options.workers) as pool:
        results = list(pool.map(examine, cases))
    show(results, Console(width=None if sys.stdout.isatty() else 200))
    partly = options.arch or options.kernel or options.models or options.specs
    path = options.csv or (None if partly else RESULTS)
    if path:
        write_csv(path, results)
    return int(any(result.failures for result in results))


if __name__ == "__main__":
    sys.exit(main())
