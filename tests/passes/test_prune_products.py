"""Every decided product is rewritten, forward and backward on their own."""

from __future__ import annotations

import torch
from torch import Tensor

from nmcompile.gemm import Role
from nmcompile.passes import pipeline
from nmcompile.passes.assign import assign
from nmcompile.passes.find import find
from nmcompile.passes.prune_products import prune_backward, prune_forward
from nmcompile.passes.run import run
from tests.passes.linear import linear_plan
from tests.passes.plans import plan_of


def test_a_rewritten_graph_is_valid_and_computes_the_pruned_product() -> None:
    gm, plan = linear_plan("activations")
    run(pipeline.JOINT, plan, "graph")
    gm.graph.lint()
    gm.recompile()
    x, w = torch.randn(8, 16), torch.randn(16, 4)
    pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
    torch.testing.assert_close(gm(x, w), pruned @ w)


def test_forward_and_backward_products_are_rewritten_on_their_own() -> None:
    def step(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((x @ w.t()).sum(), (x, w))

    leaves = (torch.randn(*shape, requires_grad=True) for shape in ((8, 16), (4, 16)))
    plan = plan_of(step, *leaves)
    find(plan)
    assign(plan)
    roles = {d.site: d.gemm.role for d in plan.decisions}
    assert sorted(roles.values()) == sorted(Role)
    prune_forward(plan)
    assert [roles[site] for site in plan.results] == [Role.FPROP]
    prune_backward(plan)
    assert set(plan.results) == set(roles)
    for site, result in plan.results.items():
        assert plan.products[site].node is result.product
    plan.graph.lint()
