"""The state that the passes share."""

from __future__ import annotations

from nmcompile.graph.aten import argument, set_argument
from nmcompile.passes import pipeline
from nmcompile.passes.plan import Simulated
from nmcompile.passes.run import run
from tests.passes.linear import linear_plan


def test_a_decision_knows_its_operand_before_and_after() -> None:
    gm, plan = linear_plan("full")
    run(pipeline.JOINT, plan, "graph")
    (decision,), (result,) = plan.decisions, plan.results.values()
    x, w = (n for n in gm.graph.nodes if n.op == "placeholder")
    assert isinstance(result, Simulated)
    assert result.original is x
    assert result.product.args == (result.pruned, w)
    assert argument(result.product, decision.gemm.rhs.arg) is w
    set_argument(result.product, decision.gemm.lhs.arg, x)
    assert result.product.args == (x, w)
