"""A result, without measuring anything."""

from __future__ import annotations

from nmcompile import Tuned
from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.tuning.result import curve_of, with_choices
from nmcompile.tuning.scores import Cost, Row


def rows() -> tuple[Row, ...]:
    """Two layers in two roles, and one product that cannot be pruned."""
    found = []
    for n, loss in enumerate((0.01, 0.2)):
        cost = Cost(
            name="activation 2:4",
            prune=OperandKind.ACTIVATION,
            format="2:4",
            loss=loss,
            first=0.001,
            gain=500.0,
        )
        noise = Cost(
            name="gradient 2:4",
            prune=OperandKind.GRADIENT,
            format="2:4",
            loss=loss / 10,
            noise=loss,
            ratio=0.5,
            gain=500.0,
        )
        for role, some in ((Role.FPROP, cost), (Role.WGRAD, noise)):
            found.append(row(f"layers.{n}", role, (some,)))
    return (*found, row("short", Role.FPROP, (), "fewer than M = 4"))


def row(module: str, role: Role, costs: tuple[Cost, ...], reason: str = "") -> Row:
    """Of a linear layer of 1,000 FLOPs."""
    return Row(
        module=module,
        module_class="Linear",
        op=Op.LINEAR,
        role=role,
        products=1,
        flops=1000.0,
        dtype="float32",
        costs=costs,
        reason=reason,
        prunable=bool(costs),
    )


def tuned(target: str | None = None) -> Tuned:
    """Layer 0 pruned in both roles, layer 1 in the backward."""
    names = {
        r.key: r.costs[0].name
        for r in rows()
        if r.costs and (r.module, r.role) != ("layers.1", Role.FPROP)
    }
    picked = with_choices(rows(), names)
    return Tuned(
        flops_budget=0.6,
        loss_budget=None,
        target=target,
        batches=4,
        passes=2.7,
        base_loss=1.5,
        terms=64.0,
        noise_cost=0.1,
        expected_loss=0.01,
        measured_loss=0.009,
        noise=0.21,
        pruned_share=0.6,
        gain=1500.0 if target is None else 1.5e-3,
        rows=picked,
        curve=curve_of(picked),
    )
