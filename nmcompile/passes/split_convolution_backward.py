"""Give dgrad and wgrad of a pruned convolution a node each: they need different masks of dY.

before   convolution_backward(dy, x, w, ..., [True, True, True]) -> dx, dw, db
after    convolution_backward(dy, x, w, ..., [True, False, False]) -> dx
         convolution_backward(dy, x, w, ..., [False, True, False]) -> dw
         sum(dy, every dimension but the channels)                 -> db, always of the dense dy
"""

from __future__ import annotations

import operator
from dataclasses import replace

import torch
from torch import fx

from nmcompile.gemm import Role
from nmcompile.graph.aten import (
    BIAS_GRADIENT,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    ConvolutionBackward,
    item_index,
)
from nmcompile.graph.insert import Inserter, follow
from nmcompile.passes.plan import Plan

aten = torch.ops.aten


def split_convolution_backward(plan: Plan) -> None:
    """Split the nodes of which at least one side is pruned."""
    target = ConvolutionBackward.operator
    nodes = {d.site: plan.products[d.site].node for d in plan.decisions}
    pruned = {nodes[d.site] for d in plan.decisions if d.pruning}
    parts = {node: _split(plan.graph, node) for node in sorted(pruned) if node.target is target}
    for d in plan.decisions:
        if nodes[d.site] in parts:
            node = parts[nodes[d.site]][d.gemm.role]
            plan.products[d.site] = replace(plan.products[d.site], node=node)


def _split(graph: fx.Graph, node: fx.Node) -> dict[Role, fx.Node]:
    insert, call = Inserter(graph), ConvolutionBackward.of(node)
    new: dict[Role, fx.Node] = {}
    results: dict[int, fx.Node] = {}
    with insert.before(node):
        for output, role in ((INPUT_GRADIENT, Role.DGRAD), (WEIGHT_GRADIENT, Role.WGRAD)):
            if call.output_mask[output]:
                only = replace(call, output_mask=[i == output for i in range(3)])
                new[role] = insert.op(node, only)
                results[output] = insert.call(node, operator.getitem, new[role], output)
        if call.output_mask[BIAS_GRADIENT]:
            dims = [0, *range(2, len(call.grad_output.meta["val"].shape))]
            results[BIAS_GRADIENT] = insert.call(node, aten.sum.dim_IntList, call.grad_output, dims)
    for made in (*new.values(), *results.values()):
        follow(made, node)
    for user in list(node.users):
        if item_index(user) in results:
            user.replace_all_uses_with(results[item_index(user)])
        graph.erase_node(user)
    graph.erase_node(node)
    return new
