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

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.insert import Inserter, in_backward
from nmcompile.graph.masked_readers import MaskedReaders, elementwise_ancestors, origin, path
from nmcompile.ops.schemas import CompressLike, Decompress, UnpackMask
from nmcompile.passes.plan import Compressed, Plan, Sparse


def save_kept(plan: Plan) -> None:
    """Rewrite every exact, sparse forward site where it saves memory."""
    for d in plan.decisions:
        done, masked = plan.results.get(d.site), plan.masked.get(d.site)
        if not isinstance(done, Sparse) or masked is None or d.pruning is None:
            continue
        packed = done.compressed
        by_rows = not packed.column_major and packed.rows == 0 and not packed.opaque
        if by_rows and d.pruning.operand.kind is OperandKind.ACTIVATION:
            match = _match(packed, masked)
            if match is not None:
                _rewrite(plan.graph, packed, match)


@dataclass(frozen=True)
class _Match:
    """``readers``: the forward values that the backward reads, and who reads each of them there.

    The values follow from ``roots``, some of them. ``masks`` and ``unpacked`` are what the backward
    makes of the packed operand.
    """

    readers: dict[fx.Node, list[fx.Node]]
    roots: list[fx.Node]
    masks: list[fx.Node]
    unpacked: list[fx.Node]

    @property
    def first(self) -> fx.Node:
        """The first node that needs any of it."""
        return min([u for some in self.readers.values() for u in some] + self.masks + self.unpacked)


def _match(packed: Compressed, masked: fx.Node) -> _Match | None:
    """What is saved in vain; None where anything reads more than the kept places."""
    read = [
        p
        for p in elementwise_ancestors(packed.operand)
        if p.op == "call_function" and any(map(in_backward, p.users))
    ]
    roots = [p for i, p in enumerate(read) if path(p, read[:i]) is None]
    if not roots or not MaskedReaders(masked, read, roots).all_multiply_the_gradient():
        return None
    users = list(packed.packed.users)
    masks = [u for u in users if u.target is UnpackMask.operator]
    unpacked = [u for u in users if u.target is Decompress.operator]
    readers = {p: [u for u in p.users if in_backward(u)] for p in read}
    return _Match(readers, roots, masks, unpacked)


def _rewrite(graph: fx.Graph, packed: Compressed, match: _Match) -> None:
    insert, first = Inserter(graph), match.first
    kept = {p: _keep(insert, p, packed) for p in match.roots}
    with insert.before(first):
        places = _places(insert, first, kept, packed, match)
    for p, readers in match.readers.items():
        for reader in readers:
            reader.replace_input_with(p, places[p])
    leading = kept[match.roots[0]]
    for node in match.masks:
        replace(UnpackMask.of(node), packed=leading).write(node)
    if packed.operand in places and packed.packed not in kept.values():
        for node in match.unpacked:
            _replace_unpacked(insert, node, leading, places[packed.operand])


def _places(
    insert: Inserter,
    site: fx.Node,
    kept: dict[fx.Node, fx.Node],
    packed: Compressed,
    match: _Match,
) -> dict[fx.Node, fx.Node]:
    """Every value that the backward reads, made again from the kept places of the roots."""
    places: dict[fx.Node, fx.Node] = {}
    for p in match.roots:
        rows, columns = insert.sizes(site, packed.operand)
        value = insert.op(site, Decompress(kept[p], rows, columns, packed.layout))
        if p.meta["val"].dim() != 2:
            value = insert.reshape(site, value, insert.sizes(site, p))
        places[p] = value
    for p in [*match.readers, packed.operand]:
        for node in path(p, places) or ():
            given: Any = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
            args, kwargs = given
            places[node] = insert.call(site, node.target, *args, **kwargs)
    return places


def _keep(insert: Inserter, p: fx.Node, packed: Compressed) -> fx.Node:
    """The kept places of ``p``, in the forward; ``packed`` itself if it holds them."""
    site = packed.packed
    if origin(p) is origin(packed.operand):
        return site
    with insert.before(max(site, p).next):
        flat = p
        if p.meta["val"].dim() != 2:
            flat = insert.reshape(site, p, insert.sizes(site, packed.operand))
        return insert.op(site, CompressLike(flat, site, packed.layout), name="kept")


def _replace_unpacked(insert: Inserter, node: fx.Node, kept: fx.Node, again: fx.Node) -> None:
    """The pruned operand from the operand at the kept places, computed again."""
    call = Decompress.of(node)
    with insert.before(node):
        mask = insert.op(node, UnpackMask(kept, call.rows, call.columns, call.layout))
        result = insert.masked(node, mask, again)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
