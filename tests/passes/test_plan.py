"""The state that the passes share, and the order in which they see it."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile import Policy
from nmcompile.gemm import OperandKind
from nmcompile.graph.aten import argument, set_argument
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.passes import pipeline
from nmcompile.passes.plan import Plan, Simulated
from nmcompile.passes.run import run


def linear_plan(policy: str) -> tuple[fx.GraphModule, Plan]:
    gm = make_fx(lambda x, w: torch.mm(x, w), tracing_mode="fake")(
        torch.randn(8, 16), torch.randn(16, 4)
    )
    kinds = operand_kinds(
        gm.graph,
        lambda n: OperandKind.WEIGHT if n.name.startswith("w") else OperandKind.ACTIVATION,
    )
    return gm, Plan(gm.graph, kinds, Policy.recipe(policy))


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


def test_finding_and_deciding_change_nothing() -> None:
    gm, plan = linear_plan("full")
    before = str(gm.graph)
    run(pipeline.JOINT[:2], plan, "graph")
    assert str(gm.graph) == before
    assert plan.decisions[0].pruning is not None


def test_a_rewritten_graph_is_valid_and_computes_the_pruned_product() -> None:
    gm, plan = linear_plan("activations")
    run(pipeline.JOINT, plan, "graph")
    gm.graph.lint()
    gm.recompile()
    x, w = torch.randn(8, 16), torch.randn(16, 4)
    pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
    torch.testing.assert_close(gm(x, w), pruned @ w)
