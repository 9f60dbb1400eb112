"""Write the 1x1, stride-1 convolutions that run sparse as the matrix products that they are.

    before   convolution(x [N,C,H,W] channels-last, w [O,C,1,1], b)
    after    x2 [NHW,C] = reshape(permute(x));  mm(x2, w2 [C,O]) + b  -> permuted back

    dgrad    mm(dy2 [NHW,O], w2 [O,C])
    wgrad    mm(permute(dy2) [O,NHW], x2 [NHW,C])

Channels-last memory is row-major [NHW, C]: nothing is copied, and the blocks keep their numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import Role
from nmcompile.graph.insert import Inserter
from nmcompile.passes.plan import Decision, Plan

aten = torch.ops.aten


def as_matmul(plan: Plan, d: Decision) -> None:
    """Rewrite a decided convolution; ``d.node`` is then the mm, its pruned operand the mm's."""
    assert d.pruning is not None
    insert, node, role = Inserter(plan.graph), d.node, d.gemm.role
    old = node if role is Role.FPROP else _only_result(node)
    with insert.before(node):
        if role is Role.FPROP:
            x, w, bias = node.args[:3]
            weight = insert.call(node, aten.permute.default, _weight(insert, node, w), [1, 0])
            product = insert.call(node, aten.mm.default, _flat(insert, node, x), weight)
            y = product if bias is None else insert.call(node, aten.add.Tensor, product, bias)
            new = _image(insert, node, y, x)
        elif role is Role.DGRAD:
            dy, x, w = node.args[:3]
            weight = _weight(insert, node, w)
            product = insert.call(node, aten.mm.default, _flat(insert, node, dy), weight)
            new = _image(insert, node, product, x)
        else:
            dy, x, w = node.args[:3]
            dy_t = insert.call(node, aten.permute.default, _flat(insert, node, dy), [1, 0])
            product = insert.call(node, aten.mm.default, dy_t, _flat(insert, node, x))
            shape = list(w.meta["val"].shape)  # type: ignore[union-attr]
            new = insert.call(node, aten.reshape.default, product, shape)
    old.replace_all_uses_with(new)
    for erased in dict.fromkeys((old, node)):
        erased.graph.erase_node(erased)
    is_left = d.pruning.operand is d.gemm.lhs
    operand = replace(d.pruning.operand, arg=0 if is_left else 1, dims=(1,) if is_left else (0,))
    d.node, d.pruning = product, replace(d.pruning, operand=operand)


def _only_result(node: fx.Node) -> fx.Node:
    """dgrad and wgrad have been split: each node has one getitem."""
    (user,) = node.users
    return user


def _flat(insert: Inserter, site: fx.Node, image: Any) -> fx.Node:
    """[N,C,H,W] -> [NHW,C]."""
    moved = insert.call(site, aten.permute.default, image, [0, 2, 3, 1])
    return insert.call(site, aten.reshape.default, moved, [-1, image.meta["val"].shape[1]])


def _weight(insert: Inserter, site: fx.Node, weight: Any) -> fx.Node:
    """[O,C,1,1] -> [O,C]."""
    return insert.call(site, aten.reshape.default, weight, list(weight.meta["val"].shape[:2]))


def _image(insert: Inserter, site: fx.Node, rows: fx.Node, like: Any) -> fx.Node:
    """[NHW,C] -> [N,C,H,W], channels-last, with the N, H and W of ``like``."""
    n, _, h, w = insert.sizes(site, like)
    shape = [n, h, w, rows.meta["val"].shape[1]]
    return insert.call(
        site,
        aten.permute.default,
        insert.call(site, aten.reshape.default, rows, shape),
        [0, 3, 1, 2],
    )
