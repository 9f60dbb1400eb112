"""Which of the three GEMMs is a product with a gradient operand, and of which forward product?

Autograd gives a backward operation the ``seq_nr`` of its forward operation. Where there is none
(a graph traced by hand), the shared operand tells: wgrad ``dY^T X`` reads the X that fprop read,
dgrad ``dY W`` its W. The other operand's kind then decides: a weight means dgrad, an activation
means wgrad, unless the forward product had no weight (attention), where both are dgrad.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import fx

from nmcompile.gemm import Gemm, Op, OperandKind, Role, size_hint
from nmcompile.graph.aten import argument, view_base
from nmcompile.graph.grouped import is_grouped
from nmcompile.reason import Code, Reason


def assign_roles(found: list[Gemm]) -> list[Gemm]:
    """Give every product with a gradient operand its role and its forward product."""
    forward = [g for g in found if not _is_backward(g)]
    by_seq_nr: dict[int | None, Gemm] = {}
    for g in forward:
        if g.seq_nr is not None:
            # The first of a number is differentiated: a later product without a gradient (a frozen
            # teacher's) makes no autograd node and shows the number of the newest one.
            by_seq_nr.setdefault(g.seq_nr, g)
    differentiated = Counter(g.seq_nr for g in found if _is_backward(g) and not _has_weight(g))
    return [
        _with_role(g, forward, by_seq_nr, differentiated[g.seq_nr] > 1) if _is_backward(g) else g
        for g in found
    ]


def _has_weight(gemm: Gemm) -> bool:
    return OperandKind.WEIGHT in (gemm.lhs.kind, gemm.rhs.kind)


def _is_backward(gemm: Gemm) -> bool:
    return OperandKind.GRADIENT in (gemm.lhs.kind, gemm.rhs.kind)


def _with_role(
    gemm: Gemm, forward: list[Gemm], by_seq_nr: dict[int | None, Gemm], is_twin: bool
) -> Gemm:
    partner = by_seq_nr.get(gemm.seq_nr)
    if partner is None or not _belong_together(gemm, partner):
        partner = _by_shared_operand(gemm, forward)
    gemm = replace(gemm, forward=partner.node if partner else None)
    if gemm.op is Op.CONV:
        return gemm
    if gemm.role is not Role.FPROP:  # its operator says so
        no_weight = partner is not None and partner.op is Op.MATMUL
        return replace(gemm, op=Op.MATMUL, role=Role.DGRAD) if no_weight else gemm
    layer = Op.GROUPED if is_grouped(gemm.node) else Op.LINEAR
    kinds = {gemm.lhs.kind, gemm.rhs.kind}
    # Where Inductor wrote the forward product without one (an outer product), both its gradients
    # tell: each reads the other operand, and neither of these is a weight.
    unseen = partner is None and gemm.seq_nr is not None and is_twin
    if unseen or (partner is not None and partner.op is Op.MATMUL):
        return replace(gemm, op=Op.MATMUL, role=Role.DGRAD)
    if partner is not None and (read := _with_activation_of(partner, gemm)):
        return replace(read, op=layer, role=Role.WGRAD)
    if _has_weight(gemm):
        return replace(gemm, op=layer, role=Role.DGRAD)
    if kinds == {OperandKind.GRADIENT}:
        text = "both operands are gradients (a gradient of a gradient)"
        guess = Reason(Code.DOUBLE_GRADIENT, text)
        return replace(gemm, op=Op.MATMUL, role=Role.DGRAD, guess=guess)
    text = "no forward product found; taken for a weight gradient"
    guessed = None if partner else Reason(Code.NO_FORWARD, text)
    return replace(gemm, op=layer, role=Role.WGRAD, guess=guessed)


def _with_activation_of(forward: Gemm, gemm: Gemm) -> Gemm | None:
    """``gemm``, where what it reads as a weight is the forward product's activation."""
    data = {_base(forward, o.arg) for o in forward.operands if o.kind is OperandKind.ACTIVATION}
    lhs, rhs = (
        replace(o, kind=OperandKind.ACTIVATION)
        if o.kind is OperandKind.WEIGHT and _base(gemm, o.arg) in data
        else o
        for o in gemm.operands
    )
    return replace(gemm, lhs=lhs, rhs=rhs) if (lhs, rhs) != gemm.operands else None


def _by_shared_operand(gemm: Gemm, forward: list[Gemm]) -> Gemm | None:
    shared = {_base(gemm, o.arg) for o in gemm.operands if o.kind is not OperandKind.GRADIENT}
    candidates = [g for g in forward if shared & {_base(g, o.arg) for o in g.operands}]
    return next((g for g in candidates if _belong_together(gemm, g)), None)


def _belong_together(backward: Gemm, forward: Gemm) -> bool:
    """The three GEMMs of a layer permute the same M, N, K (a convolution's only nearly)."""
    if Op.CONV in (backward.op, forward.op):
        return backward.op is forward.op
    # By number: one symbolic size can be written in several ways.
    return sorted(map(size_hint, backward.sizes)) == sorted(map(size_hint, forward.sizes))


def _base(gemm: Gemm, arg: str) -> fx.Node:
    return view_base(argument(gemm.node, arg))
