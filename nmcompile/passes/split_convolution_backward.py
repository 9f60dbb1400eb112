"""Give dgrad and wgrad of a pruned convolution a node each: they need different masks of dY.

before   convolution_backward(dy, x, w, ..., [True, True, True]) -> dx, dw, db
after    convolution_backward(dy, x, w, ..., [True, False, False]) -> dx
         convolution_backward(dy, x, w, ..., [False, True, False]) -> dw
         sum(dy, every dimension but the channels)                 -> db, always of the dense dy
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import Role
from nmcompile.graph.insert import Inserter
from nmcompile.passes.plan import Plan

aten = torch.ops.aten


def split_convolution_backward(plan: Plan) -> None:
    """Split the nodes of which at least one side is pruned."""
    target = aten.convolution_backward.default
    pruned = {d.node for d in plan.decisions if d.node.target is target and d.pruning}
    parts = {node: _split(plan.graph, node) for node in sorted(pruned)}
    for decision in plan.decisions:
        if decision.node in parts:
            decision.node = parts[decision.node][decision.gemm.role]


def _split(graph: fx.Graph, node: fx.Node) -> dict[Role, fx.Node]:
    insert = Inserter(graph)
    dy, mask = node.args[0], node.args[10]
    assert isinstance(dy, fx.Node)
    assert isinstance(mask, (list, tuple))
    new: dict[Role, fx.Node] = {}
    results: list[fx.Node | None] = [None, None, None]
    with insert.before(node):
        for output, role in enumerate((Role.DGRAD, Role.WGRAD)):
            if mask[output]:
                only = [i == output for i in range(3)]
                new[role] = insert.call(node, node.target, *node.args[:10], only)
                _follow(new[role], node)
                results[output] = insert.call(node, operator.getitem, new[role], output)
                _follow(results[output], node)
        if mask[2]:
            dims = [0, *range(2, len(dy.meta["val"].shape))]
            results[2] = insert.call(node, aten.sum.dim_IntList, dy, dims)
            _follow(results[2], node)
    for user in list(node.users):
        replacement: Any = results[user.args[1]]  # type: ignore[index, call-overload]
        if replacement is not None:
            user.replace_all_uses_with(replacement)
        graph.erase_node(user)
    graph.erase_node(node)
    return new


def _follow(new: fx.Node | None, old: fx.Node) -> None:
    """These nodes replace ``old``: they stand where the partitioner had put it."""
    assert new is not None
    if "partitioner_tag" in old.meta:
        new.meta["partitioner_tag"] = old.meta["partitioner_tag"]
