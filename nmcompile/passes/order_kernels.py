"""Let the kernel that reads more of the same tensors run first: its inputs are free earlier.

    before   a, b = nm.fused_compress([dact, gate], ...)              dup, and its two products
             nm.mm(a, ...);  nm.mm(b, ...)
             c, d = nm.fused_compress([dact, gate, up], ...)          dgate, and its two products
             nm.mm(c, ...);  nm.mm(d, ...)
    after    c, d and their products, then a, b                  up is gone before those of dup

Whatever depends on the earlier kernel moves behind the products of the later one. Nothing is moved
where those depend on it.
"""

from __future__ import annotations

import itertools

from torch import fx

from nmcompile.graph.aten import view_base
from nmcompile.ops.fused_schemas import FusedCompress
from nmcompile.passes.plan import Kernels


def order_kernels(kernels: Kernels) -> None:
    """Swap neighbours of which the later one reads all that the earlier one does, and more."""
    nodes = FusedCompress.nodes(kernels.graph)
    for first, second in itertools.pairwise(nodes):
        some, more = ({*map(view_base, FusedCompress.of(n).inputs)} for n in (first, second))
        if some < more:
            _sink(first, second)


def _sink(first: fx.Node, second: fx.Node) -> None:
    """Move what depends on ``first`` behind the last reader of what ``second`` writes."""
    last = max((user for item in second.users for user in item.users), default=None)
    if last is None or last.op == "output":
        return
    moving: list[fx.Node] = []
    node = first
    while node is not last.next:
        if node is first or any(given in moving for given in node.all_input_nodes):
            moving.append(node)
        node = node.next
    if last in moving or second in moving:
        return
    for moved in moving:
        last.append(moved)
        last = moved
