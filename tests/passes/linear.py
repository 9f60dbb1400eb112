"""The plan of one product ``x [8,16] w [16,4]``, traced by hand."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile import Policy
from nmcompile.gemm import OperandKind
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.passes.plan import Plan


def linear_plan(policy: str) -> tuple[fx.GraphModule, Plan]:
    """The graph under a recipe, before the first pass."""
    gm = make_fx(lambda x, w: torch.mm(x, w), tracing_mode="fake")(
        torch.randn(8, 16), torch.randn(16, 4)
    )
    kinds = operand_kinds(
        gm.graph,
        lambda n: OperandKind.WEIGHT if n.name.startswith("w") else OperandKind.ACTIVATION,
    )
    return gm, Plan(gm.graph, kinds, Policy.recipe(policy))
