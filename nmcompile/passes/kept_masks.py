"""Masks of weights that are kept between steps: the graph reads them as inputs.

    before   pruned = nm.prune(w [O,I], None, 0, 2, 4, [0, 1], "transposable")
    after    pruned = where(mask_of_w [O,I] != 0, w, 0)

Which weights have one follows from the rules (``kept_mask``); the input is there before the passes
run (``inductor.kept_inputs``), and its place in the graph after the weight's own views is found
here (``masked``).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.errors import NMError, PolicyError
from nmcompile.gemm import Gemm, Pruning, Role
from nmcompile.graph.aten import FLAT_VIEWS, argument, aten, permutation, prims
from nmcompile.graph.float8 import Cast, cast_of
from nmcompile.graph.insert import Inserter, SiteMark
from nmcompile.graph.stored_weight import StoredWeight
from nmcompile.ops.schemas import KeepMask, Mask
from nmcompile.passes.plan import Decision, KeptMask, Plan
from nmcompile.policy.rule import MaskLife
from nmcompile.reason import Code, Reason
from nmcompile.weight_masks.stored_mask import StoredMask


def kept_mask(plan: Plan, gemm: Gemm, pruning: Pruning, life: MaskLife) -> KeptMask | str:
    """The kept mask that a product reads, or why none can be kept of its weight."""
    operand = pruning.operand
    cast = cast_of(gemm.node, operand.arg)
    value = cast.source if isinstance(cast, Cast) else argument(gemm.node, operand.arg)
    found = StoredWeight.of(value, {gemm.node}, plan.kinds)
    if found.computed:
        return found.obstacle
    if found.node not in plan.whole:
        return "it is no parameter that the compiled graph holds whole"
    tile = operand.tile_dims and ([found.order[d] for d in operand.tile_dims], operand.tile_groups)
    along = [found.order[d] for d in operand.dims], operand.groups
    stored = StoredMask.of(pruning.format, pruning.method, along, tile)
    return KeptMask(found.node, plan.whole[found.node], stored, life)


def note_kept(plan: Plan) -> None:
    """Say of each decided product how long its mask is kept, and where nothing decays.

    Raises:
        PolicyError: the rules of two products that read one mask differ in how long it is kept.
    """
    trained = [origin for _, what, origin in _torch.outputs_of(plan.graph) if what == "gradient"]
    first: dict[tuple[int, StoredMask, bool], Decision] = {}
    for d in plan.decisions:
        if d.pruning is None or d.site not in plan.kept:
            continue
        kept, forward = plan.kept[d.site], d.gemm.role is Role.FPROP
        other = first.setdefault((kept.number, kept.stored, forward), d)
        _check_alike(plan, other, d)
        steps = kept.life.refresh
        text = f"its mask is kept for {steps:,} step{'s' * (steps > 1)}"
        if kept.life.decay and forward:
            text += f", and what it leaves out decays by {kept.life.decay:g}"
        plan.notes[d.site].append(Reason(Code.KEPT, text))
        if kept.life.decay and trained and _torch.input_origin(kept.weight) not in trained:
            frozen = "nothing decays: the weight has no gradient in this graph (it is frozen)"
            plan.notes[d.site].append(Reason(Code.NO_DECAY, frozen))
    for (number, stored, forward), d in first.items():
        if forward and (backward := first.get((number, stored, False))):
            _check_alike(plan, d, backward)


def all_kept(plan: Plan) -> list[KeptMask]:
    """The masks that the decided products read, each once; what decays is said by the forward."""
    found: dict[tuple[int, StoredMask], KeptMask] = {}
    for d in sorted(plan.decisions, key=lambda d: d.gemm.role is not Role.FPROP):
        if d.pruning is not None and (kept := plan.kept.get(d.site)):
            if d.gemm.role is not Role.FPROP:
                kept = replace(kept, life=replace(kept.life, decay=0.0))
            found.setdefault((kept.number, kept.stored), kept)
    return list(found.values())


def _check_alike(plan: Plan, one: Decision, other: Decision) -> None:
    """Of one mask there is one life; what decays is a matter of the forward alone."""
    both = (one, other)
    mine, theirs = (plan.kept[d.site].life for d in both)
    alike = mine == theirs if one.gemm.role is other.gemm.role else mine.refresh == theirs.refresh
    if not alike:
        rules = [f"{d.rule and d.rule.label} ({d.gemm.role} of {d.gemm.where})" for d in both]
        raise PolicyError(
            f"{' and '.join(rules)} read one mask of one weight, and say refresh = "
            f"{mine.refresh} and {theirs.refresh}, decay = {mine.decay:g} and {theirs.decay:g}: "
            "write the same in both rules"
        )


def masked(plan: Plan, op: type[Mask], d: Decision, x: fx.Node) -> fx.Node:
    """``op`` (``Prune`` or ``KeepMask``) of the weight ``x`` by its kept mask.

    It is made in front of the decision's product.
    """
    kept, node = plan.kept[d.site], plan.products[d.site].node
    if (kept.number, kept.stored) not in plan.masks:
        raise NMError(f"the graph has no input for the mask of {kept.weight}, which is to be kept")
    insert, views, at = Inserter(plan.graph), list[fx.Node](), x
    while at is not kept.weight:
        views.append(at)
        at = at.all_input_nodes[0]
    mask = plan.masks[kept.number, kept.stored]
    with insert.before(node):
        for view in reversed(views):
            order = permutation(view)
            if order is not None:
                mask = insert.permute(node, mask, list(order))
            elif view.target in FLAT_VIEWS and mask.meta["val"].shape != view.meta["val"].shape:
                mask = insert.reshape(node, mask, list(view.meta["val"].shape))
        # A float, too, since Inductor's loops on the CPU read bytes into those.
        number = insert.call(node, prims.convert_element_type.default, mask, torch.float32)
        keep = insert.call(node, aten.ne.Scalar, number, 0)
        if op is KeepMask:
            return keep
        value = insert.masked(node, keep, x)
    value.meta["nm"] = SiteMark(f"{d.gemm.role} weight kept mask {kept.stored} @ {d.gemm.where}")
    return value
