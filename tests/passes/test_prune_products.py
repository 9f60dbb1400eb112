"""Every decided product is rewritten, forward and backward on their own."""

from __future__ import annotations

import torch

from nmcompile.passes import pipeline
from nmcompile.passes.run import run
from tests.passes.linear import linear_plan


def test_a_rewritten_graph_is_valid_and_computes_the_pruned_product() -> None:
    gm, plan = linear_plan("activations")
    run(pipeline.JOINT, plan, "graph")
    gm.graph.lint()
    gm.recompile()
    x, w = torch.randn(8, 16), torch.randn(16, 4)
    pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
    torch.testing.assert_close(gm(x, w), pruned @ w)
