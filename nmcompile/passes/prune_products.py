"""Rewrite the decided products: simulated ones read a pruned operand, sparse ones a compressed one.

Forward products come first, ``exact_backward`` between the two, because a backward product may
read what the forward made.
"""

from __future__ import annotations

from nmcompile.gemm import Op, Role
from nmcompile.passes.compress_operands import sparse_product
from nmcompile.passes.convolution_as_matmul import as_matmul
from nmcompile.passes.plan import Decision, Plan
from nmcompile.passes.prune_operands import simulated_product


def prune_forward(plan: Plan) -> None:
    """Rewrite the fprop products."""
    _prune(plan, [d for d in plan.decisions if d.gemm.role is Role.FPROP])


def prune_backward(plan: Plan) -> None:
    """Rewrite the dgrad and wgrad products."""
    _prune(plan, [d for d in plan.decisions if d.gemm.role is not Role.FPROP])


def _prune(plan: Plan, decisions: list[Decision]) -> None:
    rewrite = {"sparse": sparse_product, "simulate": simulated_product}
    for d in decisions:
        if d.pruning is None:
            continue
        if d.gemm.op is Op.CONV and d.execution == "sparse":
            as_matmul(plan, d)
        rewrite[d.execution](plan, d)
