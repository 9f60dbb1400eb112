"""List the products of a graph, and what multiplies but is no product node; mutates nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import fx

from nmcompile.gemm import Gemm, OperandKind, Role
from nmcompile.graph.aten import view_base
from nmcompile.graph.computed_again import is_again, read_in
from nmcompile.graph.find_gemms import find_gemms
from nmcompile.graph.find_skipped import find_skipped
from nmcompile.graph.float8 import source_of
from nmcompile.graph.module_path import path_of_stack
from nmcompile.graph.subgraphs import LAYERS_UNKNOWN
from nmcompile.passes.plan import Plan


def find(plan: Plan) -> None:
    """Fill ``plan.gemms`` and ``plan.skipped``; every path is that of all modules of the region."""
    shown = plan.region.shown
    found = _placed(find_gemms(plan.graph, plan.kinds, plan.doubt), plan)
    plan.gemms = [replace(g, path=shown(g.path)) for g in found]
    plan.skipped = [replace(s, path=shown(s.path)) for s in find_skipped(plan.graph)]


def _placed(found: list[Gemm], plan: Plan) -> Iterator[Gemm]:
    """With the module of the forward product where a node has none: in a graph for a backward.

    In one of its own what a node says of its module is that of the call at best, and all layers
    that read one activation look alike.
    """
    of_node = {gemm.node: gemm for gemm in found}
    modules = _Modules(found if plan.apart else [])
    by_name = any(rule.module or rule.class_ for rule in plan.policy.all_rules)
    for gemm in found:
        forward = of_node.get(gemm.forward) if gemm.forward is not None else None
        known = modules.of(gemm)
        if len(known) == 1:
            gemm = replace(gemm, path=known[0][0], module_class=known[0][1])
        elif known:
            doubt = LAYERS_UNKNOWN if by_name else None
            gemm = replace(gemm, path="", module_class="", guess=gemm.guess or doubt)
        elif forward is not None and not gemm.path:
            gemm = replace(gemm, path=forward.path, module_class=forward.module_class)
        yield replace(gemm, again=is_again(gemm.node))


class _Modules:
    """Of which module the gradients of a product are that is in the forward's graph alone.

    That product reads the same weight, or the same activation. Where several read an activation,
    the gradient tells: what multiplies it by a weight is of the same product.
    """

    def __init__(self, found: list[Gemm]) -> None:
        # Not by the product itself, whose sizes may be symbolic: these have no hash.
        self.readers: dict[tuple[fx.Node, Role], dict[str, Any]] = {}
        self.sure: defaultdict[fx.Node, set[str]] = defaultdict(set)
        for gemm in found:
            readers = self.readers[gemm.node, gemm.role] = _readers(gemm)
            if len(readers) == 1 and (gradient := _gradient(gemm)) is not None:
                self.sure[gradient].update(readers)

    def of(self, gemm: Gemm) -> list[tuple[str, str]]:
        """Path and class of each module that may be meant."""
        readers = self.readers.get((gemm.node, gemm.role), {})
        gradient = _gradient(gemm) if readers else None
        sure = self.sure.get(gradient, set()) if gradient is not None else set()
        names = (readers.keys() & sure) or readers.keys()
        return list({path_of_stack(readers[name]): None for name in names})


def _gradient(gemm: Gemm) -> fx.Node | None:
    """The gradient that a product reads."""
    args = [o.arg for o in gemm.operands if o.kind is OperandKind.GRADIENT]
    return view_base(source_of(gemm.node, args[0])) if args else None


def _readers(gemm: Gemm) -> dict[str, Any]:
    """What in the forward's graph reads what a product reads beside a gradient."""
    others = [o.arg for o in gemm.operands if o.kind is not OperandKind.GRADIENT]
    return read_in(source_of(gemm.node, others[0])) if len(others) == 1 else {}
