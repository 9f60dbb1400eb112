"""``explain``, ``diff`` and ``kernels``: reports of a model that TARGET names."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

import nmcompile
from nmcompile.cli.named import load
from nmcompile.errors import NMError
from nmcompile.reason import Code
from nmcompile.report.report import Report
from nmcompile.report.rows import Site


def explained(
    target: str,
    policy: str,
    gpu: str | None = None,
    each: str | None = None,
    meta: bool = False,
    cuda_graphs: bool = False,
) -> Report:
    """``nmcompile.explain`` of what TARGET names, with a sign of life on a terminal."""
    chosen = nmcompile.Policy.resolve(policy)  # before the model is made, which may take long
    with _alive() as progress:
        task = progress.add_task(f"loading {target}")
        named = load(target, meta)
        progress.update(task, description=f"planning {target} under {policy}")
        options: dict[str, Any] = {"target": gpu, "each": each, "cuda_graphs": cuda_graphs}
        return nmcompile.explain(named.model, *named.args, policy=chosen, **options, **named.kwargs)


def read(path: Path, *options: str | bool | None) -> Report:
    """A report that ``explain --json`` wrote; ``options`` are those that only a model can take.

    Raises:
        NMError: one is given, or the file holds no report of this version.
    """
    if any(options):
        raise NMError(
            f"{path} is a report, in which all is decided: --policy, --target, --cuda-graphs, "
            "--each and --meta are for a TARGET"
        )
    return Report.from_json(path)


def _alive() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def show(report: Report, as_json: bool) -> None:
    """On stdout."""
    if as_json:
        print(report.to_json())
    else:
        Console(highlight=False).print(report)


def findings(report: Report) -> list[str]:
    """What ``--strict`` does not accept, a line each."""
    found = [f"rule {rule} decided nothing" for rule in report.unused_rules]
    found += [
        f"{s.module or '(root)'} {s.role}: the policy prunes it, and it is dense: {s.reason}"
        for s in report.sites
        if s.has(Code.DECLINED)
    ]
    found += [f"{s.module or '(root)'} {s.role}: {s.guess}" for s in report.sites if s.guess]
    return found


# -- diff ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One product that two policies treat differently."""

    graph: int
    module: str
    op: str
    role: str
    sizes: tuple[str, ...]
    flops: float | None
    before: str
    after: str
    rule_before: str | None
    rule_after: str | None


def differences(before: Report, after: Report) -> list[Change]:
    """The products that differ in what is pruned, how, or in what they run as.

    Raises:
        NMError: the two reports are of different products (the model is not the same twice).
    """
    counts = [[len(g.sites) for g in r.graphs] for r in (before, after)]
    if counts[0] != counts[1]:
        raise NMError(
            f"TARGET gave another model the second time: products by graph {counts[0]} before, "
            f"{counts[1]} after"
        )
    return list(_differences(before, after))


def _differences(before: Report, after: Report) -> Iterator[Change]:
    for number, graphs in enumerate(zip(before.graphs, after.graphs, strict=True)):
        for a, b in zip(*(g.sites for g in graphs), strict=True):
            if _what(a) != _what(b):
                where = (number, a.module, str(a.op), str(a.role), a.sizes, a.flops)
                yield Change(*where, _what(a), _what(b), a.rule, b.rule)


def _what(site: Site) -> str:
    if site.pruned is None:
        return "dense"
    exact = ", exact backward" if site.backward == "exact" else ""
    return f"{site.pruned} {site.format} {site.method}, {site.execution}{exact}"


def show_differences(
    changes: Sequence[Change],
    before: Report,
    after: Report,
    policies: Sequence[str],
    as_json: bool,
) -> None:
    """On stdout."""
    totals = [r.totals for r in (before, after)]
    if as_json:
        document = {
            "schema_version": 1,
            "policies": list(policies),
            "totals": [t.model_dump(mode="json") for t in totals],
            "changes": [asdict(c) for c in changes],
        }
        print(json.dumps(document, indent=2))
        return
    console = Console(highlight=False)
    if changes:
        table = Table(title=f"{len(changes)} products differ", title_justify="left")
        for column in ("module", "role", f"before: {policies[0]}", f"after: {policies[1]}"):
            table.add_column(column, overflow="fold")
        for c in changes:
            table.add_row(*map(Text, (c.module or "(root)", f"{c.op} {c.role}", c.before, c.after)))
        console.print(table)
    else:
        console.print("no product differs")
    for policy, total in zip(policies, totals, strict=True):
        console.print(
            f"{policy}: {total.pruned_sites} of {total.sites} products pruned, "
            f"{total.pruned_share:.1%} of the FLOPs",
            markup=False,
        )


# -- kernels -------------------------------------------------------------------------------------


def show_kernels(report: Report, out: Path | None) -> None:
    """Every kernel once: its source on stdout, or as a file in ``out``."""
    sources = report.kernel_sources()
    if not sources:
        where = report.target.name if report.target else "this machine"
        raise NMError(f"no kernel would be generated on {where}: see `nmcompile explain`")
    console = Console(highlight=False, soft_wrap=True)
    for name, source in sources.items():
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            path = out / name
            path.write_text(source)
            console.print(str(path), markup=False)
        elif sys.stdout.isatty():
            console.print(Syntax(source, "python"))
        else:
            print(source)
