"""List the products of a graph, and what multiplies but is no product node; mutates nothing."""

from __future__ import annotations

from dataclasses import replace

from nmcompile.graph.find_gemms import find_gemms
from nmcompile.graph.find_skipped import find_skipped
from nmcompile.passes.plan import Plan


def find(plan: Plan) -> None:
    """Fill ``plan.gemms`` and ``plan.skipped``; every path is that of all modules of the region."""
    shown = plan.region.shown
    found = find_gemms(plan.graph, plan.kinds, plan.doubt)
    plan.gemms = [replace(g, path=shown(g.path)) for g in found]
    plan.skipped = [replace(s, path=shown(s.path)) for s in find_skipped(plan.graph)]
