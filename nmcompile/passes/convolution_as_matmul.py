"""Write the 1x1, stride-1 convolutions that run sparse as the matrix products that they are.

    before   convolution(x [N,C,H,W] channels-last, w [O,C,1,1], b)
    after    x2 [NHW,C] = reshape(permute(x));  mm(x2, w2 [C,O]) + b  -> permuted back

    dgrad    mm(dy2 [NHW,O], w2 [O,C])
    wgrad    mm(permute(dy2) [O,NHW], x2 [NHW,C])

Channels-last memory is row-major [NHW, C]: nothing is copied, and the blocks keep their numbers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from nmcompile.gemm import Op, Role
from nmcompile.graph.aten import OPERANDS, Convolution, ConvolutionBackward
from nmcompile.graph.insert import Inserter
from nmcompile.passes.plan import Decision, Plan, Product

aten = torch.ops.aten


def forward_convolution_as_matmul(plan: Plan) -> None:
    """Rewrite every fprop convolution that was decided to run sparse."""
    _rewrite(plan, [d for d in plan.decisions if d.gemm.role is Role.FPROP])


def backward_convolution_as_matmul(plan: Plan) -> None:
    """The same of dgrad and wgrad; ``exact_backward`` has to see them as convolutions."""
    _rewrite(plan, [d for d in plan.decisions if d.gemm.role is not Role.FPROP])


def _rewrite(plan: Plan, decisions: list[Decision]) -> None:
    for d in decisions:
        if d.gemm.op is Op.CONV and d.execution.how == "sparse":
            plan.products[d.site] = _as_matmul(plan, d)


def _as_matmul(plan: Plan, d: Decision) -> Product:
    """The mm that stands for the convolution, and its pruned operand."""
    insert, node, role = Inserter(plan.graph), plan.products[d.site].node, d.gemm.role
    old = node if role is Role.FPROP else _only_result(node)
    rewrite = {Role.FPROP: _forward, Role.DGRAD: _input_gradient, Role.WGRAD: _weight_gradient}
    with insert.before(node):
        product, new = rewrite[role](insert, node)
    old.replace_all_uses_with(new)
    for erased in dict.fromkeys((old, node)):
        erased.graph.erase_node(erased)
    assert d.pruning is not None
    left, right = OPERANDS[product.target]
    is_left = d.pruning.operand is d.gemm.lhs
    arg, dims = (left, (1,)) if is_left else (right, (0,))
    return Product(product, replace(d.pruning.operand, arg=arg, dims=dims))


def _forward(insert: Inserter, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The product, and what replaces the convolution."""
    call = Convolution.of(node)
    weight = insert.permute(node, _weight(insert, node, call.weight), [1, 0])
    product = insert.call(node, aten.mm.default, _flat(insert, node, call.input), weight)
    y = product if call.bias is None else insert.call(node, aten.add.Tensor, product, call.bias)
    return product, _image(insert, node, y, call.input)


def _input_gradient(insert: Inserter, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    call = ConvolutionBackward.of(node)
    weight = _weight(insert, node, call.weight)
    product = insert.call(node, aten.mm.default, _flat(insert, node, call.grad_output), weight)
    return product, _image(insert, node, product, call.input)


def _weight_gradient(insert: Inserter, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    call = ConvolutionBackward.of(node)
    dy_t = insert.permute(node, _flat(insert, node, call.grad_output), [1, 0])
    product = insert.call(node, aten.mm.default, dy_t, _flat(insert, node, call.input))
    return product, insert.reshape(node, product, list(call.weight.meta["val"].shape))


def _only_result(node: fx.Node) -> fx.Node:
    """dgrad and wgrad have been split: each node has one getitem."""
    (user,) = node.users
    return user


def _flat(insert: Inserter, site: fx.Node, image: fx.Node) -> fx.Node:
    """[N,C,H,W] -> [NHW,C]."""
    moved = insert.permute(site, image, [0, 2, 3, 1])
    return insert.reshape(site, moved, [-1, image.meta["val"].shape[1]])


def _weight(insert: Inserter, site: fx.Node, weight: fx.Node) -> fx.Node:
    """[O,C,1,1] -> [O,C]."""
    return insert.reshape(site, weight, list(weight.meta["val"].shape[:2]))


def _image(insert: Inserter, site: fx.Node, rows: fx.Node, like: fx.Node) -> fx.Node:
    """[NHW,C] -> [N,C,H,W], channels-last, with the N, H and W of ``like``."""
    n, _, h, w = insert.sizes(site, like)
    image = insert.reshape(site, rows, [n, h, w, rows.meta["val"].shape[1]])
    return insert.permute(site, image, [0, 3, 1, 2])
