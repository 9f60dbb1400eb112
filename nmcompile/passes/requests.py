"""What compressing the operand of each product would be, found before anything is rewritten.

``compress_operands`` writes these compressions and ``share_compressed`` merges those that agree;
a product is decided together with the others of its key, so the two must see the same operands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nmcompile.execution.choose import Request
from nmcompile.gemm import Gemm, Op, Pruning, Role
from nmcompile.graph.aten import (
    CASTS,
    Convolution,
    added,
    argument,
    is_bias_of_columns,
    is_view,
)
from nmcompile.graph.insert import in_backward
from nmcompile.graph.same_operand import through_transposes, value_of
from nmcompile.masks.formats import Method
from nmcompile.passes.plan import Plan
from nmcompile.passes.prune_operands import stream_of
from nmcompile.policy import Rule

aten = torch.ops.aten

#: The methods of the compress kernels; every other mask is applied in a pass of its own.
FUSED = (Method.MSE, Method.MVUE)
#: Those of whose masks one compression makes use for several products.
SHARED = (*FUSED, Method.TRANSPOSABLE)
#: What Inductor fuses an addition into, beside elementwise operators.
_REDUCTIONS = (
    aten.sum.dim_IntList,
    aten.mean.dim,
    aten.var_mean.correction,
    aten.amax.default,
)


def request(plan: Plan, site: int, gemm: Gemm, rule: Rule, pruning: Pruning) -> Request:
    """The compression that the product would ask for, if it ran sparse.

    Args:
        plan: with its products found.
        site, gemm: the product.
        rule, pruning: what was decided so far.
    """
    value, along = _convolution(gemm, pruning) if gemm.op is Op.CONV else _matrix(gemm, pruning)
    method, nm = pruning.method, pruning.format
    # A transposable mask is made once, for fprop and dgrad.
    side = None if method is Method.TRANSPOSABLE else in_backward(gemm.node)
    key = (value, nm.n, nm.m, method, side, site in plan.kept)
    backward = [g for g in plan.gemms if g.forward is gemm.node]
    return Request(
        site,
        gemm,
        pruning,
        rule,
        key if method in SHARED else (*key, site),
        along,
        stream_of(site, method),
        bias=_adds_in_a_pass(gemm, pruning),
        unpacked=len(backward) if pruning.exact else 0,
    )


def reads_pruned(plan: Plan, r: Request) -> int | None:
    """The fprop site whose pruned operand ``exact_backward`` would let this product read.

    What such a product compresses is then a tensor of its own. None for every other product.
    """
    for site, gemm in enumerate(plan.gemms):
        if gemm.node is r.gemm.forward:
            pruning = plan.pruning.get(site)
            if pruning and pruning.exact and pruning.operand.kind is r.pruning.operand.kind:
                return site
    return None


def _matrix(gemm: Gemm, pruning: Pruning) -> tuple[Any, int]:
    x: fx.Node = argument(gemm.node, pruning.operand.arg)
    along = 1 if pruning.operand is gemm.lhs else 0
    x, along = through_transposes(x, along)
    return value_of(x), along


def _convolution(gemm: Gemm, pruning: Pruning) -> tuple[Any, int]:
    """As ``convolution_as_matmul`` will write it: images are [NHW, C], weights [O, C]."""
    image = argument(gemm.node, pruning.operand.arg)
    left = pruning.operand is gemm.lhs
    along = {Role.FPROP: (1, 1), Role.DGRAD: (1, 0), Role.WGRAD: (0, 0)}[gemm.role][not left]
    return ("convolution", value_of(image)), along


def _adds_in_a_pass(gemm: Gemm, pruning: Pruning) -> bool:
    """Whether adding the bias takes a pass over the result."""
    node, left = gemm.node, pruning.operand is gemm.lhs
    if gemm.op is Op.CONV:
        bias = Convolution.of(node).bias if gemm.role is Role.FPROP else None
        inside = False
    else:
        bias = added(node)
        # The library adds one number to each row of its operand.
        inside = not left and is_bias_of_columns(bias, argument(node, pruning.operand.arg))
    return bias is not None and not inside and not _is_taken_in(node)


def _is_taken_in(node: fx.Node) -> bool:
    """Whether every reader is one into which Inductor fuses an addition to ``node``."""
    for user in node.users:
        if is_view(user):
            if not _is_taken_in(user):
                return False
            continue
        tags = getattr(user.target, "tags", ())
        if not (torch.Tag.pointwise in tags or user.target in (*CASTS, *_REDUCTIONS)):
            return False
    return bool(node.users)
