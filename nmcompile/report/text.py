"""A report as text: a table on a wide screen, two lines for each product on a narrow one."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from nmcompile.reason import Code, Reason, sentence
from nmcompile.report.rows import Site
from nmcompile.report.saved import SavedTensor

if TYPE_CHECKING:
    from nmcompile.report.report import GraphReport, Report

#: What holds for every site alike, and is printed once.
_GENERAL = (Code.AUTO_SIMULATES, Code.DECODED)
#: So many rows of what is in no graph are printed.
_MOST = 20
#: The least columns in which a table keeps its modules and rules readable.
_TABLE = 110


def terminal_width() -> int:
    """Of the terminal (or ``COLUMNS``); where there is none, wide enough for a table."""
    return shutil.get_terminal_size((150, 24)).columns


def plain(report: Report, width: int, numbered: bool = True) -> str:
    """A report as it is printed on a screen of ``width`` columns, without colours."""
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    for part in parts(report, width, numbered):
        console.print(part)
    return out.getvalue()


def parts(report: Report, width: int, numbered: bool = True) -> Iterator[RenderableType]:
    """What is printed of a report, in order, for a screen of ``width`` columns.

    ``numbered``: whether graphs are told by their number; one of many alone has none.
    """
    for number, graph in enumerate(report.graphs):
        title = f"graph{f' {number}' if numbered else ''} "
        title += f"({'training' if graph.training else 'inference'}"
        title += f", inside of {graph.operator})" if graph.operator else ")"
        title += f", {graph.runs} times" if graph.runs > 1 else ""
        if width >= _TABLE:
            yield _table(graph, title)
        else:
            yield from _rows(graph, title)
        yield from map(_text, _unit_lines(graph))
    yield from map(_text, lines(report))
    for kernel in report.kernels:
        yield Text(_printable(f"kernel {kernel}"), no_wrap=True, overflow="ignore")


def _text(text: str, overflow: Literal["fold"] | None = None) -> Text:
    return Text(_printable(text), overflow=overflow)


def _printable(text: str) -> str:
    """Names may hold anything, and a terminal obeys control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _table(graph: GraphReport, title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in ("module", "op", "role", "batch x M x N x K", "dtype", "pruned", "execution"):
        table.add_column(column, overflow="fold", no_wrap=column != "module")
    table.add_column("rule / reason", overflow="fold")
    for s in graph.sites:
        cells = (_module(s), str(s.op), str(s.role), _sizes(s), s.dtype, _pruned(s), s.execution)
        table.add_row(*map(_text, (*cells, _why(s))))
    return table


def _rows(graph: GraphReport, title: str) -> Iterator[RenderableType]:
    yield Text(title, style="italic")
    for s in graph.sites:
        yield Text.assemble(
            (_printable(_module(s)), "bold"), f"  {s.op} {s.role}  {_sizes(s)}  {s.dtype}"
        )
        what = s.execution if s.pruned is None else f"{_pruned(s)}, {s.execution}"
        grid = Table.grid(padding=(0, 2))
        grid.add_row("", _text(": ".join(filter(None, (what, _why(s)))), overflow="fold"))
        yield grid


def _module(site: Site) -> str:
    return site.module or "(root)"


def _sizes(site: Site) -> str:
    return " x ".join(site.sizes[1:] if site.sizes[0] == "1" else site.sizes)


def _pruned(site: Site) -> str:
    return f"{site.pruned} {site.format} {site.method}" if site.pruned else "-"


def _why(site: Site) -> str:
    own = sentence(r for r in site.reasons if r.code not in _GENERAL)
    guess = "" if site.guess in site.reasons else str(site.guess or "")
    return "; ".join(filter(None, (site.rule, own, guess)))


def lines(report: Report) -> Iterator[str]:
    """Sums, and what is to be said of the whole report."""
    t = report.totals
    sparse = sum(
        s.known_flops * s.dropped * g.runs
        for g in report.graphs
        for s in g.sites
        if s.execution == "sparse"
    )
    left_out = f"; sparse products leave out {sparse / t.flops:.1%} of all" if sparse else ""
    share = f": {t.pruned_share:.1%} of {t.flops:.3g} FLOPs"
    unknown = f"{t.unknown_sites} of them have sizes that are data, whose FLOPs are not known"
    yield (
        f"{t.pruned_sites} of {t.sites} products pruned"
        f"{'' if t.unknown_sites == t.sites and t.sites else share}{left_out}"
        f"{'; ' + unknown if t.unknown_sites else ''}"
    )
    if t.dense_us and t.planned_us:
        yield _times(report, t.dense_us, t.planned_us, t.untimed_sites)
    saved = [s for g in report.graphs for s in (g.saved or ()) * g.runs if not s.is_input]
    if saved:
        packed = _bytes(s for s in saved if s.compressed)
        yield (
            f"saved for the backward: {_bytes(saved):,} bytes in {len(saved)} tensors, "
            f"of them compressed {packed:,}"
        )
    specs = Counter(s.name for g in report.graphs for s in (g.kernel_specs or ()) * g.runs)
    for name, count in sorted(specs.items()):
        yield f"kernel that would be generated: {count} x {name}"
    yield from _skipped_lines(report)
    yield from sorted({r.text for s in report.sites for r in s.reasons if r.code in _GENERAL})
    yield from (f"rule {rule} decided nothing" for rule in report.unused_rules)
    yield from (note.text for note in report.notes)
    yield from _eager_lines(report, t.eager_share)
    if report.uncompiled:
        yield f"in no compiled graph (not called, or run eagerly): {', '.join(report.uncompiled)}"
    guesses = sum(s.guess is not None for s in report.sites)
    if guesses:
        yield f"{guesses} products are dense since their role is unknown; see their reason."


def _skipped_lines(report: Report) -> Iterator[str]:
    alike: dict[tuple[str, Reason], list[float | None]] = {}
    for graph in report.graphs:
        for s in graph.skipped * graph.runs:
            alike.setdefault((s.target, s.reason), []).append(s.flops)
    for (target, reason), flops in alike.items():
        known = sum(f for f in flops if f is not None)
        size = f", {known:.3g} FLOPs" if known else ""
        yield f"skipped {len(flops)} x {target}{size}: {reason}"


def _eager_lines(report: Report, share: float) -> Iterator[str]:
    """What is in no graph, the largest first."""
    if not report.eager:
        return
    unknown = " and what has no known size" if any(r.flops is None for r in report.eager) else ""
    yield f"{share:.1%} of the step's multiplying{unknown} is in no graph, runs eagerly and dense:"
    rows = sorted(report.eager, key=lambda row: -(row.flops or 0.0))
    for row in rows[:_MOST]:
        size = "unknown FLOPs" if row.flops is None else f"{row.flops:.3g} FLOPs"
        why = f" ({row.reason})" if row.reason else ""
        where = f"{row.module or '(root)'} ({row.module_class or 'function'})"
        yield f"  {where}: {row.calls} x {row.target}, {size}{why}"
    if len(rows) > _MOST:
        yield f"  and {len(rows) - _MOST} more"


def _times(report: Report, dense: float, planned: float, untimed: int) -> str:
    hows = {row.how for g in report.graphs for row in g.units} or {"predicted"}
    place = f" on {report.target.name}" if report.target else ""
    place += " in CUDA graphs" if report.cuda_graphs else ""
    left_out = f", {untimed} products without figures left out" if untimed else ""
    return (
        f"{' and '.join(sorted(hows))}{place}: products of a step {dense * 1e-3:.2f} ms dense, "
        f"{planned * 1e-3:.2f} ms as decided ({dense / planned:.2f}x){left_out}"
    )


def _bytes(saved: Iterable[SavedTensor]) -> int:
    return sum(s.bytes for s in saved)


def _unit_lines(graph: GraphReport) -> Iterator[str]:
    """A line for each unit; equal ones, those of repeated layers, share theirs."""
    alike: dict[str, list[int]] = {}
    for row in graph.units:
        alike.setdefault(str(row), []).append(row.unit)
    for text, numbers in alike.items():
        yield f"unit {', '.join(map(str, numbers))}: {text}"
