"""Plans of small graphs that were traced by hand: quick to make, to run through and to break."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile import Policy
from nmcompile.gemm import OperandKind
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.passes.pipeline import JOINT
from nmcompile.passes.plan import Plan
from nmcompile.passes.run import Pass, run

aten = torch.ops.aten

SPARSE = Policy(extends="full", execution="sparse")
SPARSE_EXACT = Policy(extends="full-exact", execution="sparse")


def plan_of(f: Callable[..., Any], *args: Tensor, policy: Policy | str = "full") -> Plan:
    """The plan of a graph before the first pass; arguments whose names start with w are weights.

    A gradient starts where autograd starts one: at the ones of a scalar loss.
    """
    gm = make_fx(f, tracing_mode="fake")(*args)
    kinds = operand_kinds(
        gm.graph,
        lambda n: OperandKind.WEIGHT if n.name.startswith("w") else OperandKind.ACTIVATION,
        lambda n: n.target is aten.ones_like.default,
    )
    return Plan(gm.graph, kinds, Policy.resolve(policy))


def ran(plan: Plan, steps: Sequence[Pass] = JOINT) -> Plan:
    """The plan after the passes."""
    run(steps, plan, "graph")
    return plan


def multilayer(x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward of two linear layers."""
    loss = torch.relu(x @ w1.t()) @ w2.t()
    return torch.autograd.grad(loss.sum(), (x, w1, w2))


def layers(policy: Policy | str) -> Plan:
    """Of ``multilayer``."""
    leaves = [torch.randn(*shape).requires_grad_() for shape in ((16, 32), (32, 32), (16, 32))]
    return plan_of(multilayer, *leaves, policy=policy)


def pointwise_convolution(policy: Policy | str) -> Plan:
    """Forward and backward of a 1x1 convolution of channels-last images."""

    def step(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(torch.conv2d(x, w).square().sum(), (x, w))

    image = torch.randn(2, 32, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    return plan_of(step, image, torch.randn(16, 32, 1, 1).requires_grad_(), policy=policy)


def node(plan: Plan, target: Any) -> fx.Node:
    """The first node of the graph that calls ``target``."""
    return next(n for n in plan.graph.nodes if n.target is target)
