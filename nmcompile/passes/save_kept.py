"""Save what a masked gradient reads at the kept places alone (``backward = "exact"``, sparse).

The input gradient of the pruned product is zero wherever the mask dropped the operand h. If h came
from p by elementwise operators, the backward reads p only to multiply that gradient: the kept
places of p are enough, and h at these places follows from them.

    before   h = gelu(p);  packed = nm.compress(h);  y = nm.mm(packed, w)
             dh = where(nm.unpack_mask(packed), mm(dy, w), 0)
             dw = mm(dy_t, nm.decompress(packed));   dp = dh * gelu'(p)
             saved for the backward: p and packed (1 + 9/16)
    after    kept = nm.compress_like(p, packed);     q = nm.decompress(kept)
             dh = where(nm.unpack_mask(kept), mm(dy, w), 0)
             dw = mm(dy_t, where(nm.unpack_mask(kept), gelu(q), 0));   dp = dh * gelu'(q)
             saved for the backward: kept (9/16)

q is zero elsewhere: the pass checks, by evaluating it, that gelu' is finite at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.insert import Inserter, in_backward
from nmcompile.graph.masked_readers import MaskedReaders, elementwise_ancestors, origin, path
from nmcompile.passes.plan import Compressed, Decision, Plan

aten, nm = torch.ops.aten, torch.ops.nm


def save_kept(plan: Plan) -> None:
    """Rewrite every exact, sparse forward site where it saves memory."""
    for d in plan.decisions:
        packed = d.compressed
        if packed is None or d.masked is None or packed.column_major or packed.rows != 0:
            continue
        assert d.pruning is not None
        if d.pruning.operand.kind is OperandKind.ACTIVATION:
            _rewrite(plan, d, packed, d.masked)


def _rewrite(plan: Plan, d: Decision, packed: Compressed, masked: fx.Node) -> None:
    base = packed.operand
    read = [
        p
        for p in elementwise_ancestors(base)
        if p.op == "call_function" and any(map(in_backward, p.users))
    ]
    roots = [p for i, p in enumerate(read) if path(p, read[:i]) is None]
    if not roots or not MaskedReaders(masked, read, roots).all_multiply_the_gradient():
        return
    users = list(packed.packed.users)
    masks = [u for u in users if u.target is nm.unpack_mask.default]
    unpacked = [u for u in users if u.target is nm.decompress.default]
    readers = {p: [u for u in p.users if in_backward(u)] for p in read}
    first = min([u for some in readers.values() for u in some] + masks + unpacked)
    insert = Inserter(plan.graph)
    kept = {p: _keep(insert, p, packed) for p in roots}
    places: dict[fx.Node, fx.Node] = {}
    with insert.before(first):
        for p in roots:
            sizes = insert.sizes(first, base)
            value = insert.call(first, nm.decompress.default, kept[p], *sizes, packed.layout)
            if p.meta["val"].dim() != 2:
                value = insert.call(first, aten.reshape.default, value, insert.sizes(first, p))
            places[p] = value
        for p in [*read, base]:
            for node in path(p, places) or ():
                given: Any = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
                args, kwargs = given
                places[node] = insert.call(first, node.target, *args, **kwargs)
    for p, some in readers.items():
        for reader in some:
            reader.replace_input_with(p, places[p])
    for node in masks:
        node.update_arg(0, kept[roots[0]])
    if base in places and packed.packed not in kept.values():
        for node in unpacked:
            _replace_unpacked(insert, node, kept[roots[0]], places[base])


def _keep(insert: Inserter, p: fx.Node, packed: Compressed) -> fx.Node:
    """The kept places of ``p``, in the forward; ``packed`` itself if it holds them."""
    site = packed.packed
    if origin(p) is origin(packed.operand):
        return site
    with insert.before(max(site, p).next):
        flat = p
        if p.meta["val"].dim() != 2:
            flat = insert.call(site, aten.reshape.default, p, insert.sizes(site, packed.operand))
        like = nm.compress_like.default
        return insert.call(site, like, flat, site, packed.layout, name="kept")


def _replace_unpacked(insert: Inserter, node: fx.Node, kept: fx.Node, again: fx.Node) -> None:
    """The pruned operand from the operand at the kept places, computed again."""
    with insert.before(node):
        mask = insert.call(node, nm.unpack_mask.default, kept, *node.args[1:])
        result = insert.masked(node, mask, again)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
