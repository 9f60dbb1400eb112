"""The state that the passes share, and the order in which they see it."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile import Policy, passes
from nmcompile.gemm import OperandKind
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.passes.plan import Plan


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
    (decision,) = passes.run(plan).decisions
    x, w = (n for n in gm.graph.nodes if n.op == "placeholder")
    assert decision.original is x
    assert decision.pruned is not None
    assert decision.node.args == (decision.pruned, w)
    assert decision.operand_node(decision.gemm.rhs) is w
    decision.set_operand(decision.gemm.lhs, x)
    assert decision.node.args == (x, w)


def test_finding_and_deciding_change_nothing() -> None:
    gm, plan = linear_plan("full")
    before = str(gm.graph)
    for step in passes.PASSES[:2]:
        step(plan)
    assert str(gm.graph) == before
    assert plan.decisions[0].pruning is not None


def test_a_rewritten_graph_is_valid_and_computes_the_pruned_product() -> None:
    gm, plan = linear_plan("activations")
    passes.run(plan)
    gm.graph.lint()
    gm.recompile()
    x, w = torch.randn(8, 16), torch.randn(16, 4)
    pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
    torch.testing.assert_close(gm(x, w), pruned @ w)
