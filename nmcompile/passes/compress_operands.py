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

    before   mm(x, permute(w [O,I])), mm(dy, w)             w under one transposable mask
    after    pruned = nm.prune(w, None, 0, 2, 4, [0, 1], "transposable")
             nm.compress(pruned, None, [0], [1], 2, 4, "mse", layout)       for fprop
             nm.compress(pruned, None, [0], [0], 2, 4, "mse", layout)       for dgrad

    before   mm(x [M,K], w [K,N])                           where only the library knows the layout
    after    pruned = nm.prune(x, None, 0, 2, 4, [1], "mse")
             packed = nm.pack(pruned, "cusparselt");  nm.mm(packed, w, M, "cusparselt")

The bias of an addmm is an argument of the sparse product where it runs along the rows of the
compressed operand (a pruned weight), and an addition that Inductor fuses elsewhere.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from nmcompile.compressed.layouts import Layout
from nmcompile.graph.aten import OPERANDS, added, is_bias_of_columns, operands
from nmcompile.graph.insert import Inserter
from nmcompile.graph.same_operand import through_transposes, value_of
from nmcompile.masks.formats import Method
from nmcompile.ops.schemas import Compress, Mm, Pack, Prune
from nmcompile.passes.kept_masks import masked
from nmcompile.passes.plan import Compressed, Decision, Plan, Sparse
from nmcompile.passes.prune_operands import in_memory_order, mask_operand, seed_of, stream_of
from nmcompile.passes.requests import FUSED

aten = torch.ops.aten


def sparse_product(plan: Plan, d: Decision) -> Sparse:
    """Rewrite the product of a sparse decision; the result's product is the nm.mm."""
    found = plan.products[d.site]
    assert found.operand is not None
    node, insert = found.node, Inserter(plan.graph)
    lhs, rhs = operands(node)
    is_left = found.operand.arg == OPERANDS[node.target][0]
    pruned, other = (lhs, rhs) if is_left else (rhs, lhs)
    bias = added(node)
    with insert.before(node):
        compressed = _compress(plan, d, pruned, dim=1 if is_left else 0)
        # Along the rows of the compressed operand, or something else (a residual, a row vector)?
        inside = not is_left and is_bias_of_columns(bias, pruned)
        call = Mm(
            compressed.packed,
            other if is_left else insert.permute(node, other, [1, 0]),
            insert.size(node, pruned, 0 if is_left else 1),
            compressed.layout,
            bias=bias if inside else None,
            transpose_result=not is_left,
            column_major=compressed.column_major,
        )
        mark = f"{d.gemm.role} sparse product @ {d.gemm.path or node.name}"
        product = insert.op(node, call, mark=mark, name="sparse_product")
        result = product
        if bias is not None and not inside:
            result = insert.call(node, aten.add.Tensor, product, bias)
    node.replace_all_uses_with(result)
    plan.graph.erase_node(node)
    return Sparse(product, pruned, compressed)


def _compress(plan: Plan, d: Decision, x: fx.Node, dim: int) -> Compressed:
    """nm.compress of the operand, read from where it lies row by row."""
    pruning, node, insert = d.pruning, plan.products[d.site].node, Inserter(plan.graph)
    assert pruning is not None
    layout = d.execution.layout
    assert layout is not None
    if layout.opaque:
        return _pack(plan, d, x, dim, layout)
    method, nm = pruning.method, pruning.format
    source, along = through_transposes(x, dim)
    if method not in FUSED or d.site in plan.kept:
        source = _pruned(plan, d, source, along)
        x = source if along == dim else insert.permute(node, source, [1, 0])
        method = Method.MSE
    call = Compress(
        source,
        seed_of(plan, node, d.gemm.device) if method.random else None,
        streams=[stream_of(d.site, method)],
        dims=[along],
        n=nm.n,
        m=nm.m,
        method=str(method),
        layout=str(layout),
    )
    mark = f"{d.gemm.role} {pruning.operand.kind} {nm} {method} @ {d.gemm.path or node.name}"
    every = insert.op(node, call, mark=mark, name="compressed")
    packed = insert.call(node, operator.getitem, every, 0, name="packed")
    rows, columns = (0, 1) if dim == 1 else (1, 0)
    return Compressed(packed, x, rows, columns, column_major=along == 0, layout=str(layout))


def _pack(plan: Plan, d: Decision, x: fx.Node, dim: int, layout: Layout) -> Compressed:
    """nm.prune, then nm.pack of the operand or of its transpose: the library's own compression."""
    assert d.pruning is not None
    node, insert = plan.products[d.site].node, Inserter(plan.graph)
    pruned = mask_operand(plan, Prune, d, x)
    operand = pruned if dim == 1 else insert.permute(node, pruned, [1, 0])
    mark = f"{d.gemm.role} {d.pruning.operand.kind} packed @ {d.gemm.path or node.name}"
    packed = insert.op(node, Pack(operand, str(layout)), mark=mark, name="packed")
    rows, columns = (0, 1) if dim == 1 else (1, 0)
    in_order = bool(operand.meta["val"].is_contiguous())
    return Compressed(packed, pruned, rows, columns, not in_order, str(layout))


def _pruned(plan: Plan, d: Decision, x: fx.Node, along: int) -> fx.Node:
    """The matrix under a mask that ``nm.compress`` does not make; a transposable one is made once.

    It is 2:4 for fprop and for dgrad: what is compressed for both is the pruned value of fprop.
    """
    pruning, node, insert = d.pruning, plan.products[d.site].node, Inserter(plan.graph)
    assert pruning is not None
    method, nm = pruning.method, pruning.format
    dims = in_memory_order(x, [0, 1]) if method is Method.TRANSPOSABLE else [along]
    shared = method is Method.TRANSPOSABLE
    kept = plan.kept.get(d.site)
    key = (value_of(x), nm, method, None if shared else d.site, kept and kept.stored)
    if key not in plan.pruned and kept is not None:
        plan.pruned[key] = masked(plan, Prune, d, x)
    elif key not in plan.pruned:
        seed = seed_of(plan, node, d.gemm.device) if method.random else None
        call = Prune(x, seed, stream_of(d.site, method), nm.n, nm.m, dims, str(method))
        mark = f"{d.gemm.role} {pruning.operand.kind} {nm} {method} @ {d.gemm.path or node.name}"
        plan.pruned[key] = insert.op(node, call, mark=mark, name="pruned")
    return plan.pruned[key]
