"""Replace a product by the compressed operand and the sparse product.

    before   mm(x [M,K], w [K,N])                           x pruned along K
    after    (packed,) = nm.compress(x, None, [0], [1], 2, 4, "mse", layout)
             nm.mm(packed, w, M, layout)

    before   mm(permute(dy [T,O]), x [T,I])                 the operand dy^T pruned along T
    after    (packed,) = nm.compress(dy, seed, [site], [0], 2, 4, "mvue", layout)
             nm.mm(packed, x, O, layout)

    before   mm(x [M,K], w [K,N])                           w pruned along K
    after    (packed,) = nm.compress(w, None, [0], [0], 2, 4, "mse", layout)
             nm.mm(packed, permute(x), N, layout, transpose_result=True)

The bias of an addmm is an argument of the sparse product where it runs along the rows of the
compressed operand (a pruned weight), and an addition that Inductor fuses elsewhere.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

import nmcompile.ops.compress
import nmcompile.ops.unpack  # noqa: F401  (registers torch.ops.nm)
from nmcompile.graph.find_gemms import LEFT_OPERAND
from nmcompile.graph.insert import Inserter
from nmcompile.masks.formats import Method
from nmcompile.passes.plan import Compressed, Decision, Plan
from nmcompile.passes.prune_operands import mask_operand, seed_of, stream_of

aten = torch.ops.aten

#: What nm.compress does itself; every other mask is applied first and its survivors compressed.
_FUSED = (Method.MSE, Method.MVUE)


def sparse_product(plan: Plan, d: Decision) -> None:
    """Rewrite the product of a sparse decision; ``decision.node`` is then the nm.mm."""
    assert d.pruning is not None
    node, insert = d.node, Inserter(plan.graph)
    left = LEFT_OPERAND[node.target]
    lhs, rhs = node.args[left], node.args[left + 1]
    is_left = d.pruning.operand.arg == left
    pruned, other = (lhs, rhs) if is_left else (rhs, lhs)
    assert isinstance(pruned, fx.Node)
    assert isinstance(other, fx.Node)
    d.original = pruned
    with insert.before(node):
        d.compressed = _compress(plan, d, pruned, dim=1 if is_left else 0)
        rows = insert.size(node, pruned, 0 if is_left else 1)
        dense = other if is_left else insert.call(node, aten.permute.default, other, [1, 0])
        bias = node.args[0] if left else None
        # Along the rows of the compressed operand, or something else (a residual, a row vector)?
        fits = isinstance(bias, fx.Node) and bias.meta["val"].shape == pruned.meta["val"].shape[1:]
        inside = fits and not is_left
        layout = str(d.layout)
        options = (bias if inside else None, not is_left, d.compressed.column_major)
        mark = f"{d.gemm.role} sparse product @ {d.gemm.path or node.name}"
        args = (d.compressed.packed, dense, rows, layout, *options)
        product = insert.call(
            node, torch.ops.nm.mm.default, *args, mark=mark, name="sparse_product"
        )
        result = product
        if bias is not None and not inside:
            result = insert.call(node, aten.add.Tensor, product, bias)
    node.replace_all_uses_with(result)
    plan.graph.erase_node(node)
    d.node = product


def _compress(plan: Plan, d: Decision, x: fx.Node, dim: int) -> Compressed:
    """nm.compress of the operand, read from where it lies row by row."""
    pruning, node, insert = d.pruning, d.node, Inserter(plan.graph)
    assert pruning is not None
    method = pruning.method
    if method not in _FUSED:
        x = mask_operand(plan, torch.ops.nm.prune.default, d, x)
        method = Method.MSE
    source, along = _through_transposes(x, dim)
    seed = seed_of(plan, node, d.gemm.device) if method.random else None
    nm = pruning.format
    mark = f"{d.gemm.role} {pruning.operand.kind} {nm} {method} @ {d.gemm.path or node.name}"
    shape = (nm.n, nm.m, str(method), str(d.layout))
    args = (source, seed, [stream_of(d.site, method)], [along], *shape)
    every = insert.call(node, torch.ops.nm.compress.default, *args, mark=mark, name="compressed")
    packed = insert.call(node, operator.getitem, every, 0, name="packed")
    rows, columns = (0, 1) if dim == 1 else (1, 0)
    return Compressed(packed, x, rows, columns, column_major=along == 0, layout=str(d.layout))


def _through_transposes(x: fx.Node, dim: int) -> tuple[fx.Node, int]:
    """The matrix of which ``x`` is the transpose, and the dimension there; or ``x`` itself."""
    while _is_transpose(x) and not x.meta["val"].is_contiguous():
        x, dim = x.all_input_nodes[0], 1 - dim
    return x, dim


def _is_transpose(node: fx.Node) -> bool:
    if node.target is aten.permute.default:
        order: Any = node.args[1]
        return list(order) == [1, 0]
    return node.target is aten.t.default
