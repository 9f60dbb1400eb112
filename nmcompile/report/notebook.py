"""A report in a notebook: a small table of modules and roles, without scripts and without colours.

What says sparse, simulated and dense is a mark and a word, so that it reads on light and dark
alike; every name is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from nmcompile.gemm import Role

if TYPE_CHECKING:
    from nmcompile.report.report import GraphReport
    from nmcompile.report.rows import Site

#: So many modules are shown, the largest first; the page shows all.
_MOST = 30
_MARKS = {"sparse": "\u25cf", "simulate": "\u25d0", "dense": "\u25cb"}
_CELL = Markup('<td style="text-align:left;vertical-align:top"{}>{}</td>')
_HEAD = Markup('<th scope="col" style="text-align:left">{}</th>')


def html(graphs: Sequence[GraphReport], lines: Iterable[str]) -> str:
    """The table, with ``lines`` under it."""
    modules: dict[str, list[tuple[Site, int]]] = {}
    for graph in graphs:
        for s in graph.sites:
            modules.setdefault(s.module, []).append((s, graph.runs))
    sizes = {m: sum(s.known_flops * runs for s, runs in rows) for m, rows in modules.items()}
    largest = set(sorted(modules, key=lambda m: -sizes[m])[:_MOST])
    whole = sum(sizes.values())
    rows = [
        Markup("<tr>{}{}{}</tr>").format(
            _cell(module or "(root)"),
            Markup("").join(_role(modules[module], role) for role in Role),
            _cell(f"{sizes[module] / whole:.1%}" if whole else "unknown"),
        )
        for module in modules
        if module in largest
    ]
    below = list(lines)
    if (more := len(modules) - len(rows)) > 0:
        below.insert(0, f"and {more} smaller modules: print(report), or report.to_html(path)")
    heads = ("module", *Role, "of all FLOPs")
    table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        Markup("").join(_HEAD.format(str(head)) for head in heads), Markup("").join(rows)
    )
    notes = Markup("").join(Markup("<div>{}</div>").format(line) for line in below)
    return str(Markup("<div>{}{}</div>").format(table if rows else "", notes))


def _role(sites: Sequence[tuple[Site, int]], role: Role) -> Markup:
    own = [s for s, _ in sites if s.role is role]
    if not own:
        return _cell("")
    counts = Counter(map(_what, own))
    text = ", ".join(f"{n} x {what}" if n > 1 else what for what, n in counts.items())
    why = dict.fromkeys("; ".join(filter(None, (s.rule, s.reason))) for s in own)
    return _cell(text, "\n".join(filter(None, why)))


def _what(site: Site) -> str:
    mark = _MARKS[site.execution]
    if site.pruned is None:
        return f"{mark} dense"
    return f"{mark} {site.pruned} {site.format} {site.method}, {site.execution}"


def _cell(text: str, why: str = "") -> Markup:
    return _CELL.format(Markup(' title="{}"').format(why) if why else "", text)
