"""List the products of a graph, and what multiplies but is no product node; mutates nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nmcompile.gemm import Gemm
from nmcompile.graph.computed_again import is_again
from nmcompile.graph.find_gemms import find_gemms
from nmcompile.graph.find_skipped import find_skipped
from nmcompile.passes.plan import Plan


def find(plan: Plan) -> None:
    """Fill ``plan.gemms`` and ``plan.skipped``; every path is that of all modules of the region."""
    shown = plan.region.shown
    found = [*_placed(find_gemms(plan.graph, plan.kinds, plan.doubt))]
    plan.gemms = [replace(g, path=shown(g.path)) for g in found]
    plan.skipped = [replace(s, path=shown(s.path)) for s in find_skipped(plan.graph)]


def _placed(found: list[Gemm]) -> Iterator[Gemm]:
    """With the module of the forward product where a node has none: in a graph for a backward."""
    of_node = {gemm.node: gemm for gemm in found}
    for gemm in found:
        forward = of_node.get(gemm.forward) if gemm.forward is not None else None
        if forward is not None and not gemm.path:
            gemm = replace(gemm, path=forward.path, module_class=forward.module_class)
        yield replace(gemm, again=is_again(gemm.node))
