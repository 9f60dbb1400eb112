"""``backward = "exact"``: the true gradient of the product of the pruned operand.

    before   y  = mm(nm.prune(x), w_t)      after    y  = mm(nm.prune(x), w_t)
             dx = mm(dy, w)                          dx = where(keep_mask(x), mm(dy, w), 0)
             dw = mm(dy_t, x)                        dw = mm(dy_t, nm.prune(x))

A sparse product's activation is saved compressed, 9/16 of its bytes in 16 bits:

    before   y  = nm.mm(packed, w_t)        after    y  = nm.mm(packed, w_t)
             dx = mm(dy, w)                          dx = where(nm.unpack_mask(packed), dx, 0)
             dw = mm(dy_t, x)                        dw = mm(dy_t, nm.decompress(packed))

For a pruned weight it is dw that is masked, and dgrad that reads the pruned weight.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

import nmcompile.ops.masks  # noqa: F401  (registers torch.ops.nm)
from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.graph.backward_roles import is_view
from nmcompile.graph.insert import Inserter
from nmcompile.masks.formats import Method
from nmcompile.passes.plan import Compressed, Decision, Plan
from nmcompile.passes.prune_operands import mask_operand

aten = torch.ops.aten


def exact_backward(plan: Plan) -> None:
    """Rewrite the backward products of every fprop site whose rule says ``exact``."""
    for forward in plan.decisions:
        if forward.pruning is None or not forward.pruning.exact:
            continue
        kind = forward.pruning.operand.kind
        masked_role = Role.DGRAD if kind is OperandKind.ACTIVATION else Role.WGRAD
        for backward in plan.decisions:
            if backward.gemm.forward is forward.gemm.node:
                rewrite = _mask_result if backward.gemm.role is masked_role else _read_pruned
                note = rewrite(plan, forward, backward)
                backward.reason = "; ".join(filter(None, (backward.reason, note)))


def _mask_result(plan: Plan, forward: Decision, backward: Decision) -> str:
    pruning = forward.pruning
    assert pruning is not None
    assert forward.original is not None
    result, insert = backward.node, Inserter(plan.graph)
    if forward.compressed is not None and pruning.method is Method.MSE:
        with insert.before(result):
            mask = _unpacked(insert, result, torch.ops.nm.unpack_mask.default, forward.compressed)
    else:
        # A compressed block names n elements, also where another mask keeps fewer (at the ragged
        # edge of a transposable one): its places are then no mask of the gradient.
        mask = mask_operand(plan, torch.ops.nm.keep_mask.default, forward, forward.original)
    if backward.gemm.op is Op.CONV:
        output = 0 if backward.gemm.role is Role.DGRAD else 1
        result = next(
            u for u in result.users if u.target is operator.getitem and u.args[1] == output
        )
    users = list(result.users)
    with insert.before(result.next):
        if backward.gemm.op is not Op.CONV and _is_transposed(forward, backward):
            rank = len(result.meta["val"].shape)
            order = [*range(rank - 2), rank - 1, rank - 2]
            mask = insert.call(result, aten.permute.default, mask, order)
        masked = insert.masked(result, mask, result)
    for user in users:
        user.replace_input_with(result, masked)
    forward.masked = masked
    return f"the result is masked like the {pruning.operand.kind} of fprop (backward = exact)"


def _unpacked(insert: Inserter, site: fx.Node, op: Any, packed: Compressed) -> fx.Node:
    """The mask or the values of a compressed operand, in the orientation that the graph had."""
    x = packed.operand
    sizes = [insert.size(site, x, d) for d in (packed.rows, packed.columns)]
    value = insert.call(site, op, packed.packed, *sizes, packed.layout)
    return value if packed.rows == 0 else insert.call(site, aten.permute.default, value, [1, 0])


def _is_transposed(forward: Decision, backward: Decision) -> bool:
    """Is the backward product the transposed gradient of the pruned operand?

    d(lhs) = dY rhs^T has dY on the left and d(rhs) = lhs^T dY on the right, or each transposed.
    """
    assert forward.pruning is not None
    was_left = forward.pruning.operand.arg == forward.gemm.lhs.arg
    gradient_left = backward.gemm.lhs.kind is OperandKind.GRADIENT
    return was_left != gradient_left


def _read_pruned(plan: Plan, forward: Decision, backward: Decision) -> str:
    """Let the other backward product read the pruned operand, through the same views."""
    assert forward.pruning is not None
    kind = forward.pruning.operand.kind
    operand = next(o for o in backward.gemm.operands if o.kind is kind)
    chain: list[fx.Node] = []
    value = backward.operand_node(operand)
    while value is not forward.original and is_view(value):
        chain.append(value)
        value = value.all_input_nodes[0]
    if value is not forward.original:
        return f"reads the unpruned {kind}: it is no view of the operand of fprop"
    insert = Inserter(plan.graph)
    with insert.before(backward.node):
        if forward.compressed is not None:
            unpack = torch.ops.nm.decompress.default
            value = _unpacked(insert, backward.node, unpack, forward.compressed)
        else:
            assert forward.pruned is not None
            value = forward.pruned
        for view in reversed(chain):
            value = insert.call(backward.node, view.target, value, *view.args[1:])
    backward.set_operand(operand, value)
    return f"reads the pruned {kind} of fprop (backward = exact)"
