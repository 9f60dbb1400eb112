"""``backward = "exact"``: the true gradient of the product of the pruned operand.

    before   y  = mm(nm.prune(x), w_t)      after    y  = mm(nm.prune(x), w_t)
             dx = mm(dy, w)                          dx = where(keep_mask(x), mm(dy, w), 0)
             dw = mm(dy_t, x)                        dw = mm(dy_t, nm.prune(x))

A sparse product's activation is saved compressed, 9/16 of its bytes in 16 bits:

    before   y  = nm.mm(packed, w_t)        after    y  = nm.mm(packed, w_t)
             dx = mm(dy, w)                          dx = where(nm.unpack_mask(packed), dx, 0)
             dw = mm(dy_t, x)                        dw = mm(dy_t, nm.decompress(packed))

Where only the library can read what is packed, the backward reads the mask and the pruned operand
as after a simulated product. For a pruned weight it is dw that is masked, and dgrad that reads the
pruned weight. A backward product that reduces over one element is a multiplication by now, and gets
the same.
"""

from __future__ import annotations

import torch
from torch import fx

from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.graph.aten import (
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    argument,
    is_view_or_cast,
    items,
    seen_through,
    set_argument,
)
from nmcompile.graph.find_skipped import is_written_out
from nmcompile.graph.float8 import Cast, cast_of
from nmcompile.graph.insert import Inserter, in_backward
from nmcompile.graph.recast import recast
from nmcompile.masks.formats import Method
from nmcompile.ops.schemas import Decompress, KeepMask, UnpackMask
from nmcompile.passes.plan import Compressed, Decision, Plan, Simulated, Sparse
from nmcompile.passes.prune_operands import as_operand, mask_operand
from nmcompile.reason import Code, Reason

aten = torch.ops.aten


def exact_backward(plan: Plan) -> None:
    """Rewrite the backward products of every fprop site whose rule says ``exact``."""
    for forward in plan.decisions:
        if forward.pruning is None or not forward.pruning.exact:
            continue
        kind = forward.pruning.operand.kind
        masked_role = Role.DGRAD if kind is OperandKind.ACTIVATION else Role.WGRAD
        for backward in plan.decisions:
            if backward.gemm.forward is not forward.gemm.node:
                continue
            rewrite = _mask_result if backward.gemm.role is masked_role else _read_pruned
            if backward.gemm.ambiguous and rewrite is _mask_result:
                rewrite = _not_masked
            plan.notes[backward.site].append(rewrite(plan, forward, backward))
        for node in _multiplications(forward):
            plan.notes[forward.site].append(_as_multiplication(plan, forward, node))


def _multiplications(forward: Decision) -> list[fx.Node]:
    """What autograd made of the forward product and Inductor wrote without a product.

    A custom Function has one number for all that it computes: its forward may have some as well.
    """
    product = forward.gemm.node
    number = product.meta.get("seq_nr")
    if number is None:
        return []
    same = [n for n in product.graph.nodes if n.meta.get("seq_nr") == number]
    return [n for n in same if is_written_out(n) and in_backward(n)]


def _as_multiplication(plan: Plan, forward: Decision, node: fx.Node) -> Reason:
    """Let it read the pruned operand, or mask it if it is the gradient of that."""
    assert forward.pruning is not None
    kind, done = forward.pruning.operand.kind, plan.results[forward.site]
    for factor in dict.fromkeys(node.all_input_nodes):
        pruned = _as_read(plan, node, factor, done)
        if pruned is not None:
            node.replace_input_with(factor, pruned)
            text = f"a backward product of one term reads the pruned {kind} (backward = exact)"
            return Reason(Code.READS_PRUNED, text)
    value = done.original.meta["val"]
    if str(node.meta["val"].shape) != str(value.shape) or value.dim() != 3:
        text = f"a backward product of one term is that of the unpruned {kind}"
        return Reason(Code.READS_UNPRUNED, text)
    mask = mask_operand(plan, KeepMask, forward, done.original)
    plan.masked[forward.site] = _masked(plan, node, mask)
    text = f"a backward product of one term is masked like the {kind} (backward = exact)"
    return Reason(Code.MASKED_RESULT, text)


def _not_masked(plan: Plan, forward: Decision, backward: Decision) -> Reason:
    text = "the result is not masked: it may be the gradient of several products (backward = exact)"
    return Reason(Code.READS_UNPRUNED, text)


def _mask_result(plan: Plan, forward: Decision, backward: Decision) -> Reason:
    pruning, done = forward.pruning, plan.results[forward.site]
    assert pruning is not None
    result, insert = plan.products[backward.site].node, Inserter(plan.graph)
    unpacks = isinstance(done, Sparse) and not done.compressed.opaque
    if isinstance(done, Sparse) and unpacks and pruning.method is Method.MSE:
        with insert.before(result):
            mask = _unpacked(insert, result, UnpackMask, done.compressed)
    else:
        # A compressed block names n elements, also where another mask keeps fewer (at the ragged
        # edge of a transposable one): its places are then no mask of the gradient.
        compressed = isinstance(done, Sparse)  # as the product read it: nothing is cast on the way
        original = done.original if compressed else as_operand(plan, forward, done.original).value
        mask = mask_operand(plan, KeepMask, forward, original)
    if not isinstance(result.meta["val"], torch.Tensor):  # one node computes both gradients
        output = INPUT_GRADIENT if backward.gemm.role is Role.DGRAD else WEIGHT_GRADIENT
        (result,) = items(result, output)
    if backward.gemm.op is not Op.CONV and _is_transposed(forward, backward):
        rank = len(result.meta["val"].shape)
        with insert.before(result.next):
            mask = insert.permute(result, mask, [*range(rank - 2), rank - 1, rank - 2])
    plan.masked[forward.site] = _masked(plan, result, mask)
    text = f"the result is masked like the {pruning.operand.kind} of fprop (backward = exact)"
    return Reason(Code.MASKED_RESULT, text)


def _masked(plan: Plan, result: fx.Node, mask: fx.Node) -> fx.Node:
    """What every reader of ``result`` reads in its place."""
    users, insert = list(result.users), Inserter(plan.graph)
    with insert.before(max(result, mask).next):
        masked = insert.masked(result, mask, result)
    for user in users:
        if user is not mask:
            user.replace_input_with(result, masked)
    return masked


def _unpacked(
    insert: Inserter, site: fx.Node, op: type[UnpackMask | Decompress], packed: Compressed
) -> fx.Node:
    """The mask or the values of a compressed operand, in the orientation that the graph had."""
    rows, columns = (insert.size(site, packed.operand, d) for d in (packed.rows, packed.columns))
    value = insert.op(site, op(packed.packed, rows, columns, packed.layout))
    return value if packed.rows == 0 else insert.permute(site, value, [1, 0])


def _is_transposed(forward: Decision, backward: Decision) -> bool:
    """Is the backward product the transposed gradient of the pruned operand?

    d(lhs) = dY rhs^T has dY on the left and d(rhs) = lhs^T dY on the right, or each transposed.
    """
    assert forward.pruning is not None
    was_left = forward.pruning.operand is forward.gemm.lhs
    gradient_left = backward.gemm.lhs.kind is OperandKind.GRADIENT
    return was_left != gradient_left


def _read_pruned(plan: Plan, forward: Decision, backward: Decision) -> Reason:
    """Let the other backward product read the pruned operand, through the same views."""
    assert forward.pruning is not None
    done, node = plan.results[forward.site], plan.products[backward.site].node
    kind = forward.pruning.operand.kind
    operand = next(o for o in backward.gemm.operands if o.kind is kind)
    said = Reason(Code.READS_PRUNED, f"reads the pruned {kind} of fprop (backward = exact)")
    cast = cast_of(node, operand.arg)
    if isinstance(cast, Cast) and cast.source is done.original and isinstance(done, Simulated):
        recast(Inserter(plan.graph), node, operand.arg, cast, done.pruned)
        return said
    value = _as_read(plan, node, argument(node, operand.arg), done)
    if value is None:
        text = f"reads the unpruned {kind}: it is no view of the operand of fprop"
        return Reason(Code.READS_UNPRUNED, text)
    set_argument(node, operand.arg, value)
    return said


def _as_read(plan: Plan, node: fx.Node, value: fx.Node, done: Simulated | Sparse) -> fx.Node | None:
    """The pruned operand as ``value`` shows the operand; None where it shows anything else.

    It is made in front of ``node``, through the same views and casts.
    """

    def shows(node: fx.Node) -> bool:
        return node is not done.original and is_view_or_cast(node)

    shown, views = seen_through(value, shows)
    if shown is not done.original:
        return None
    insert = Inserter(plan.graph)
    with insert.before(node):
        if isinstance(done, Simulated):
            value = done.pruned
        elif done.compressed.opaque:
            value = done.compressed.operand
        else:
            value = _unpacked(insert, node, Decompress, done.compressed)
        return insert.shown(node, value, views)
