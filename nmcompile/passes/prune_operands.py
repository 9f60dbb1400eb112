"""Replace the chosen operand of each site by its pruned value.

    before   addmm(bias, x [T,I], w_t [I,O])
    after    pruned = nm.prune(x, None, site, 2, 4, [1], "mse")
             addmm(bias, pruned, w_t)

    before   mm(dy_t [O,T], x [T,I])
    after    seed   = randint(...)          one per side of the graph and device
             pruned = nm.prune(dy_t, seed, site, 2, 4, [1], "mvue")
             mm(pruned, x)

The operand of a product in 8-bit floating point is cast again, from what it was cast from:

    before   q = cast(x [T,I], scale(x));             _scaled_mm(q, w_t, 1 / scale(x), ...)
    after    pruned = nm.prune(x, None, site, 2, 4, [1], "mse")
             p = cast(pruned, scale(pruned));         _scaled_mm(p, w_t, 1 / scale(pruned), ...)

The blocks of a product that reduces over groups of rows start anew with each group:

    before   _grouped_mm(dy_t [O,S], x [S,I], offs)
    after    _grouped_mm(nm.prune_ragged(dy_t, offs, seed, site, 2, 4, 1, "mvue"), x, offs)

The random operators are pure functions of (operand, seed, site): twins are never merged, and a
recomputed one draws the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import Operand, size_hint
from nmcompile.graph.aten import argument, set_argument
from nmcompile.graph.float8 import Cast, NoCast, cast_of
from nmcompile.graph.insert import Inserter, in_backward
from nmcompile.graph.recast import Frame, recast
from nmcompile.masks.formats import Method
from nmcompile.ops.call import Call
from nmcompile.ops.schemas import KeepMaskRagged, Mask, Prune, PruneRagged, RankSeed
from nmcompile.passes.kept_masks import masked
from nmcompile.passes.plan import Decision, Plan, Simulated
from nmcompile.reason import Code, Reason

aten = torch.ops.aten

_FIXED_SCALE = Reason(
    Code.FIXED_SCALE,
    "the scale to fp8 does not follow the pruned operand (it is fixed, or from earlier steps): "
    "what the mask raises past its range saturates",
)


def simulated_product(plan: Plan, d: Decision) -> Simulated:
    """Let the product of a decision read the pruned operand."""
    product = plan.products[d.site]
    assert product.operand is not None
    node, arg = product.node, product.operand.arg
    cast = cast_of(node, arg)
    assert not isinstance(cast, NoCast), f"{node} was decided, and {cast.why}"
    if cast is not None:
        frame = as_operand(plan, d, cast.source)
        pruned = mask_operand(plan, Prune, d, frame.value)
        with frame.insert.before(node):
            pruned = frame.undo(pruned)
        recast(frame.insert, node, arg, cast, pruned)
        if d.pruning is not None and d.pruning.method.random and not cast.is_dynamic:
            plan.notes[d.site].append(_FIXED_SCALE)
        return Simulated(node, cast.source, pruned)
    original = argument(node, arg)
    pruned = mask_operand(plan, Prune, d, original)
    set_argument(node, arg, pruned)
    return Simulated(node, original, pruned)


def as_operand(plan: Plan, d: Decision, source: fx.Node) -> Frame:
    """What the decision's operand is cast from, in the order in which the product reads it."""
    product, insert = plan.products[d.site], Inserter(plan.graph)
    assert product.operand is not None
    cast = cast_of(product.node, product.operand.arg)
    steps = cast.steps if isinstance(cast, Cast) else ()
    with insert.before(product.node):
        return Frame.of(insert, product.node, steps, source)


def mask_operand(plan: Plan, op: type[Mask], d: Decision, x: fx.Node) -> fx.Node:
    """Insert ``op`` (``Prune`` or ``KeepMask``) of ``x`` in front of the decision's product.

    Blocks lie inside one channel group: where M does not divide a group's channels, the groups
    become a dimension of their own.
    """
    pruning, node, operand = d.pruning, plan.products[d.site].node, plan.products[d.site].operand
    assert pruning is not None
    assert operand is not None
    if d.site in plan.kept:
        return masked(plan, op, d, x)
    nm, method = pruning.format, pruning.method
    seed = seed_of(plan, node, d.gemm.device) if method.random else None
    dims, shared, groups = _block_dims(operand, method, x)
    shape = list(x.meta["val"].shape)
    insert = Inserter(plan.graph)

    def inserted(value: fx.Node, dims: list[int]) -> fx.Node:
        mark = f"{d.gemm.role} {operand.kind} {nm} {method} @ {d.gemm.path or node.name}"
        stream, name = stream_of(d.site, method), "pruned" if op is Prune else "keep_mask"
        if operand.offsets is None:
            call: Call = op(value, seed, stream, nm.n, nm.m, dims, str(method))
        else:
            ragged = PruneRagged if op is Prune else KeepMaskRagged
            offsets, (dim,) = argument(node, operand.offsets), dims
            call = ragged(value, offsets, seed, stream, nm.n, nm.m, dim, str(method))
        return insert.op(node, call, mark=mark, name=name)

    with insert.before(node):
        if groups == 1 or shape[shared] // groups % nm.m == 0:
            return inserted(x, dims)
        sizes = insert.sizes(node, x)
        split = [*sizes[:shared], groups, shape[shared] // groups, *sizes[shared + 1 :]]
        grouped = insert.reshape(node, x, split)
        result = inserted(grouped, [dim + (dim >= shared) for dim in dims])
        return insert.reshape(node, result, sizes)


def _block_dims(operand: Operand, method: Method, x: fx.Node) -> tuple[list[int], int, int]:
    """(dimensions of the blocks, the one that channel groups share, number of groups)."""
    if method is not Method.TRANSPOSABLE:
        return list(operand.dims), operand.dims[0], operand.groups
    assert operand.tile_dims is not None
    return in_memory_order(x, operand.tile_dims), operand.tile_dims[0], operand.tile_groups


def in_memory_order(x: fx.Node, dims: Sequence[int]) -> list[int]:
    """The dimensions of a tile, so that a weight and its transpose get the same mask on ties."""
    stride = x.meta["val"].stride()
    return sorted(dims, key=lambda d: -size_hint(stride[d]))


def stream_of(site: int, method: Method) -> int:
    """The random numbers of a site; all sites are alike, and share work, where there are none."""
    return site if method.random else 0


def seed_of(plan: Plan, node: fx.Node, device: str) -> fx.Node:
    """One 64-bit seed for all sites of this side of the graph and this device."""
    key = (in_backward(node), device)
    if key not in plan.seeds:
        insert = Inserter(plan.graph)
        options: dict[str, Any] = {"dtype": torch.int64, "device": torch.device(device)}
        with insert.before(node):
            bounds = (-(2**63), 2**63 - 1, [1])
            seed = insert.call(node, aten.randint.low, *bounds, name="seed", **options)
            if plan.ranks is not None:
                plan.sharing = plan.ranks.that_share(plan.graph, plan.kinds)
                lowest = min(plan.sharing, default=None)  # None: each rank its own
                seed = insert.op(node, RankSeed(seed, lowest), name="seed_of_rank")
        # A recomputed seed would be another seed: keep its eight bytes instead.
        for drawn in (seed, *seed.all_input_nodes):
            for mark in ("recompute", "ac_graph_id"):
                drawn.meta.pop(mark, None)
        plan.seeds[key] = seed
    return plan.seeds[key]
