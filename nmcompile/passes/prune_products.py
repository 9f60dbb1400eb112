"""Rewrite the decided products: simulated ones read a pruned operand, sparse ones a compressed one.

Forward products come first, ``exact_backward`` between the two, because a backward product may
read what the forward made.
"""

from __future__ import annotations

from dataclasses import replace

from nmcompile.gemm import Role
from nmcompile.passes.compress_operands import sparse_product
from nmcompile.passes.plan import Decision, Plan, Simulated, Sparse
from nmcompile.passes.prune_operands import simulated_product


def prune_forward(plan: Plan) -> None:
    """Rewrite the fprop products."""
    _prune(plan, [d for d in plan.decisions if d.gemm.role is Role.FPROP])


def prune_backward(plan: Plan) -> None:
    """Rewrite the dgrad and wgrad products."""
    _prune(plan, [d for d in plan.decisions if d.gemm.role is not Role.FPROP])


def _prune(plan: Plan, decisions: list[Decision]) -> None:
    for d in decisions:
        if d.pruning is not None:
            rewrite = sparse_product if d.execution.how == "sparse" else simulated_product
            result: Simulated | Sparse = rewrite(plan, d)
            plan.results[d.site] = result
            plan.products[d.site] = replace(plan.products[d.site], node=result.product)
