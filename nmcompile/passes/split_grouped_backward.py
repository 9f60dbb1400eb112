"""Give dgrad and wgrad of a pruned grouped product a node each: they need different masks of dY.

    before   transformers.grouped_mm_fallback_backward(x, w, offs, dy) -> dx, dw
    after    nm.grouped_gradient(x, w, offs, dy, False) -> dx
             nm.grouped_gradient(x, w, offs, dy, True)  -> dw

PyTorch's own grouped products have a node for each gradient.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from nmcompile.gemm import Role
from nmcompile.graph.aten import INPUT_GRADIENT, WEIGHT_GRADIENT, argument, items
from nmcompile.graph.grouped import FALLBACK_BACKWARD
from nmcompile.graph.insert import Inserter, follow
from nmcompile.ops.schemas import GroupedGradient
from nmcompile.passes.plan import Plan

_RESULTS = {Role.DGRAD: INPUT_GRADIENT, Role.WGRAD: WEIGHT_GRADIENT}


def split_grouped_backward(plan: Plan) -> None:
    """Split the nodes of which at least one side is pruned."""
    sites = {d.site: plan.products[d.site].node for d in plan.decisions}
    both = {node for node in sites.values() if str(node.target) == FALLBACK_BACKWARD}
    pruned = both & {sites[d.site] for d in plan.decisions if d.pruning}
    for d in [d for d in plan.decisions if sites[d.site] in pruned]:
        new = _gradient(plan.graph, sites[d.site], d.gemm.role)
        plan.products[d.site] = replace(plan.products[d.site], node=new)
    for node in pruned:
        for unread in [*node.users, node]:
            plan.graph.erase_node(unread)


def _gradient(graph: fx.Graph, node: fx.Node, role: Role) -> fx.Node:
    """The node that computes one result of ``node``, and is read in its place."""
    insert = Inserter(graph)
    x, w, offs, dy = (argument(node, name) for name in ("input", "weight", "offs", "grad_output"))
    with insert.before(node):
        new = insert.op(node, GroupedGradient(x, w, offs, dy, of_weight=role is Role.WGRAD))
    follow(new, node)
    for item in items(node, _RESULTS[role]):
        item.replace_all_uses_with(new)
    return new
