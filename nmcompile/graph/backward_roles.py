"""Which of the three GEMMs is a product with a gradient operand, and of which forward product?

Autograd gives a backward operation the ``seq_nr`` of its forward operation. Where there is none
(a graph traced by hand), the shared operand tells: wgrad ``dY^T X`` reads the X that fprop read,
dgrad ``dY W`` its W. The other operand's kind then decides: a weight means dgrad, an activation
means wgrad, unless the forward product had no weight (attention), where both are dgrad. Without a
forward product a weight gradient is what becomes the gradient of a parameter. What none of these
derives is a guess, which explains the row of a report and is never pruned.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import fx

from nmcompile.gemm import Gemm, Op, Operand, OperandKind, Role, size_hint
from nmcompile.graph.aten import argument, cast_base, view_base
from nmcompile.graph.find_skipped import is_written_out, solver_of
from nmcompile.graph.float8 import source_of
from nmcompile.graph.grouped import is_grouped
from nmcompile.graph.operand_kinds import Kinds
from nmcompile.graph.weight_gradients import becomes_gradient, weight_gradients
from nmcompile.reason import Code, Reason

_GRADIENT = OperandKind.GRADIENT


def assign_roles(found: list[Gemm], kinds: Kinds, doubt: Reason | None) -> list[Gemm]:
    """Give every product with a gradient operand its role and its forward product.

    Args:
        found: all products of a graph, with the kinds of their operands.
        kinds: of every value of the graph.
        doubt: why no role in this graph can be derived: every one is a guess.
    """
    if doubt is not None:
        return [_guessed(g, doubt) for g in found]
    found = _without_solvers(found, kinds)
    forward = [g for g in found if not _is_backward(g) and g.guess is None]
    differentiated = Counter(g.seq_nr for g in found if _is_backward(g) and not _has_weight(g))
    to_weights = weight_gradients(found[0].node.graph, kinds) if found else {}
    written = _written_out(found, forward, kinds)
    alike, beside = _by_sizes(forward), _read_beside(found)
    roles = []
    for g in found:
        summed = to_weights.get(g.node)
        is_wgrad = summed is not None and summed <= max(1, size_hint(g.sizes[0]))
        if g.guess is not None and g.guess.code in (Code.SOLVER, Code.NO_FORWARD):
            pass
        elif fused := _fused(g, alike(g), kinds, is_wgrad):
            g = fused
        elif _is_backward(g):
            is_twin = g.seq_nr is not None and differentiated[g.seq_nr] > 1
            multiplied = written.get(g.seq_nr) if g.seq_nr is not None else None
            if multiplied is not None:  # no other product is its forward, whatever it reads
                known = _of_written_out(g, multiplied, kinds)
                g = known or _with_role(g, None, True, is_twin, is_wgrad)
            else:
                g = _with_role(g, *_partner(g, alike(g), beside), is_twin, is_wgrad)
        elif g.guess is not None:
            g = _guessed(g, g.guess)
        roles.append(g)
    return roles


def _without_solvers(found: list[Gemm], kinds: Kinds) -> list[Gemm]:
    """What is multiplied in a solver, in distances, and in their gradients, is no layer's.

    The gradients have the operator's number; so may what a custom Function multiplies beside it.
    """
    nodes = found[0].node.graph.nodes if found else ()
    solvers = {n.meta.get("seq_nr"): why for n in nodes if (why := _solver(n, kinds)) is not None}
    layers = {g.seq_nr for g in found if not _is_backward(g) and solver_of(g.node) is None}
    gradients = {
        number: Reason(Code.NO_FORWARD, f"a gradient whose forward is no product but {why}")
        for number, why in solvers.items()
        if number not in {*layers, None}
    }
    whys = [solver_of(g.node) or gradients.get(g.seq_nr) for g in found]
    return [
        g if why is None else replace(_guessed(g, why), op=Op.MATMUL)
        for g, why in zip(found, whys, strict=True)
    ]


def _solver(node: fx.Node, kinds: Kinds) -> Reason | None:
    is_forward = node.op == "call_function" and kinds[node] is not _GRADIENT
    return solver_of(node) if is_forward else None


def _written_out(found: list[Gemm], forward: list[Gemm], kinds: Kinds) -> dict[int, fx.Node]:
    """What Inductor made of forward products that it wrote as multiplications, by their numbers.

    Not of a custom Function, which has one for all that it computes, with a product left.
    """
    numbered = {g.seq_nr for g in forward}
    nodes = found[0].node.graph.nodes if found else ()
    written = [n for n in nodes if is_written_out(n) and kinds[n] is not _GRADIENT]
    numbers = {n: n.meta.get("seq_nr") for n in written}
    return {number: n for n, number in numbers.items() if number not in {None, *numbered}}


def _of_written_out(gemm: Gemm, forward: fx.Node, kinds: Kinds) -> Gemm | None:
    """A gradient of the product that ``forward`` was; None where it reads neither operand of it."""
    factors = forward.all_input_nodes  # 16 bits are multiplied as 32
    read = {cast_base(_base(gemm, o.arg)) for o in gemm.operands}
    shares = read & set(map(cast_base, factors))
    if gemm.guess is not None or gemm.role is not Role.FPROP or not shares:
        return None
    if sum(kinds[n] is OperandKind.WEIGHT for n in factors) != 1:
        return replace(gemm, op=Op.MATMUL, role=Role.DGRAD)
    return replace(gemm, op=_layer(gemm), role=Role.DGRAD if _has_weight(gemm) else Role.WGRAD)


def _guessed(gemm: Gemm, why: Reason) -> Gemm:
    """What it looks like, for whoever reads the report."""
    gemm = replace(gemm, guess=why, forward=None)
    if gemm.op is Op.CONV:
        return gemm
    op = _layer(gemm) if _has_weight(gemm) else Op.MATMUL
    backward = _is_backward(gemm) or why.code in (Code.IN_ENGINE, Code.BACKWARD_VALUE)
    return replace(gemm, op=op, role=Role.DGRAD if backward else Role.FPROP)


def _fused(gemm: Gemm, alike: list[Gemm], kinds: Kinds, is_weight_gradient: bool) -> Gemm | None:
    """A product of the gradient that a loss computes in its forward, ``D W`` or ``D^T X``.

    Its backward only scales the result by the loss's own tangent: the result is a gradient, and so
    is the factor beside the operand that the forward product reads as well.
    """
    if gemm.guess is None or gemm.guess.code is not Code.BACKWARD_VALUE or _is_backward(gemm):
        return None
    if not becomes_gradient(gemm.node, kinds):
        return None
    for partner in (g for g in alike if g.op is not Op.MATMUL):
        read = {_base(partner, o.arg): o.kind for o in partner.operands}
        for own in gemm.operands:
            kind = read.get(_base(gemm, own.arg))
            if kind is OperandKind.WEIGHT or (kind is not None and is_weight_gradient):
                role = Role.DGRAD if kind is OperandKind.WEIGHT else Role.WGRAD
                lhs, rhs = (replace(o, kind=kind if o is own else _GRADIENT) for o in gemm.operands)
                gemm = replace(gemm, lhs=lhs, rhs=rhs, forward=partner.node, guess=None)
                return replace(gemm, op=partner.op, role=role)
    return None


def _layer(gemm: Gemm) -> Op:
    return Op.GROUPED if is_grouped(gemm.node) else Op.LINEAR


def _has_weight(gemm: Gemm) -> bool:
    return OperandKind.WEIGHT in (gemm.lhs.kind, gemm.rhs.kind)


def _is_backward(gemm: Gemm) -> bool:
    return OperandKind.GRADIENT in (gemm.lhs.kind, gemm.rhs.kind)


def _read_beside(found: list[Gemm]) -> dict[fx.Node, set[fx.Node]]:
    """What is multiplied by each gradient: both operands of its forward product, as a rule."""
    read: defaultdict[fx.Node, set[fx.Node]] = defaultdict(set)
    for gemm in filter(_is_backward, found):
        for gradient in _bases(gemm, gradients=True):
            read[gradient] |= _bases(gemm)
    return read


def _bases(gemm: Gemm, gradients: bool = False) -> set[fx.Node]:
    """What the operands are behind views: those that are gradients, or the others."""
    wanted = (o for o in gemm.operands if (o.kind is _GRADIENT) is gradients)
    return {_base(gemm, o.arg) for o in wanted}


def _partner(
    gemm: Gemm, alike: list[Gemm], beside: Mapping[fx.Node, set[fx.Node]]
) -> tuple[Gemm | None, bool]:
    """The forward product that a backward product belongs to, of those with its sizes.

    And whether that is certain: not for the input gradients of layers that share a frozen weight.

    A custom Function has one number for all that it computes: what a product reads comes first.
    Where several read that (one weight for two layers, one activation for three), the gradient
    tells: what else is multiplied by it is the other operand of the same product.
    """
    numbered = [g for g in alike if g.seq_nr is not None and g.seq_nr == gemm.seq_nr]
    for candidates in (numbered, alike):
        shared = [g for g in candidates if _share_operand(gemm, g)]
        if len(shared) > 1:
            read = set().union(*(beside[x] for x in _bases(gemm, gradients=True)))
            shared = [g for g in shared if _bases(g) <= read] or shared
        if shared:
            return shared[0], len(shared) == 1
    # The first of a number is differentiated: a later product without a gradient (a frozen
    # teacher's) makes no autograd node and shows the number of the newest one.
    return next(iter(numbered), None), True


def _with_role(
    gemm: Gemm, partner: Gemm | None, certain: bool, is_twin: bool, is_weight_gradient: bool
) -> Gemm:
    shares = partner is not None and _share_operand(gemm, partner)
    if gemm.op is Op.CONV:
        gemm = replace(gemm, forward=partner.node if partner else None)
        if gemm.guess is None or (gemm.role is Role.WGRAD and is_weight_gradient):
            return replace(gemm, guess=None)
        return _guessed(gemm, gemm.guess)
    forward = partner.node if partner and shares else None
    gemm = replace(gemm, forward=forward, ambiguous=not certain)
    if gemm.role is not Role.FPROP:  # its operator says so
        no_weight = partner is not None and partner.op is Op.MATMUL
        gemm = replace(gemm, op=Op.MATMUL, role=Role.DGRAD) if no_weight else gemm
        return gemm if gemm.guess is None else _guessed(gemm, gemm.guess)
    layer = _layer(gemm)
    if gemm.lhs.kind is gemm.rhs.kind is _GRADIENT:
        text = "both operands are gradients (a gradient of a gradient)"
        return _guessed(gemm, Reason(Code.DOUBLE_GRADIENT, text))
    # Where Inductor wrote the forward product without one (an outer product), both its gradients
    # tell: each reads the other operand, and neither of these is a weight.
    unseen = partner is None and is_twin and not (is_weight_gradient or _has_weight(gemm))
    if unseen or (partner is not None and partner.op is Op.MATMUL):
        return replace(gemm, op=Op.MATMUL, role=Role.DGRAD)
    if partner is not None and (read := _with_activation_of(partner, gemm)):
        return replace(read, op=layer, role=Role.WGRAD)
    if _has_weight(gemm):
        return replace(gemm, op=layer, role=Role.DGRAD)
    if is_weight_gradient or shares:
        return replace(gemm, op=layer, role=Role.WGRAD, guess=None)
    text = (
        "a gradient times data, whose forward is no product and whose result is no parameter's "
        "gradient"
    )
    return _guessed(gemm, gemm.guess or Reason(Code.NO_FORWARD, text))


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


def _share_operand(gemm: Gemm, forward: Gemm) -> bool:
    """Whether one reads what the other reads, and reduces over another dimension of it.

    One weight may be read by several products, by some of them as it is and by others transposed.
    """
    return any(
        _base(gemm, own.arg) is _base(forward, theirs.arg)
        and _reduced(gemm, own).isdisjoint(_reduced(forward, theirs))
        for own in gemm.operands
        for theirs in forward.operands
        if own.kind is not OperandKind.GRADIENT
    )


def _reduced(gemm: Gemm, operand: Operand) -> set[int]:
    """The dimensions that are reduced over, by their strides; none where those do not tell.

    They are a copy's in 8 bits, and a window of a convolution runs along the same in all three.
    """
    node = argument(gemm.node, operand.arg)
    if gemm.op is Op.CONV or view_base(node) is not _base(gemm, operand.arg):
        return set()
    value = node.meta["val"]
    return {size_hint(value.stride(d)) for d in operand.dims if size_hint(value.shape[d]) > 1} - {0}


def _by_sizes(forward: list[Gemm]) -> Callable[[Gemm], list[Gemm]]:
    """The forward products that belong together with a product; looked for once for its sizes."""
    known: dict[Any, list[Gemm]] = {}

    def alike(gemm: Gemm) -> list[Gemm]:
        key = gemm.op is Op.CONV, _in_eight_bits(gemm), *_sizes(gemm, 1)
        if key not in known:
            known[key] = [g for g in forward if _belong_together(gemm, g)]
        return known[key]

    return alike


def _belong_together(backward: Gemm, forward: Gemm) -> bool:
    """The three GEMMs of a layer permute the same M, N, K (a convolution's only nearly).

    What the forward reduces over is a dimension of its gradients.
    """
    if Op.CONV in (backward.op, forward.op):
        return backward.op is forward.op
    # What each of the three reduces may be padded where it is in 8 bits, to a multiple of 16.
    eight_bits = _in_eight_bits(backward) or _in_eight_bits(forward)
    ours, theirs = (_sizes(g, 16 if eight_bits else 1) for g in (backward, forward))
    return sorted(ours) == sorted(theirs) and theirs[-1] in ours[1:3]


def _in_eight_bits(gemm: Gemm) -> bool:
    return gemm.dtype.startswith("float8")


def _sizes(gemm: Gemm, step: int) -> list[int]:
    # By number: one symbolic size can be written in several ways.
    batch, *rest = map(size_hint, gemm.sizes)
    return [batch, *(-(-size // step) * step for size in rest)]


def _base(gemm: Gemm, arg: str) -> fx.Node:
    return view_base(source_of(gemm.node, arg))
