"""The plan of one product ``x [8,16] w [16,4]``, traced by hand."""

from __future__ import annotations

import torch
from torch import fx

from nmcompile.passes.plan import Plan
from tests.passes.plans import plan_of


def linear_plan(policy: str) -> tuple[fx.GraphModule, Plan]:
    """The graph under a recipe, before the first pass."""
    x, w = torch.randn(8, 16), torch.randn(16, 4)
    plan = plan_of(lambda x, w: torch.mm(x, w), x, w, policy=policy)
    gm = plan.graph.owning_module
    assert gm is not None
    return gm, plan
