"""Whether a pruned product runs on sparse tensor cores, is simulated, or stays dense, and why.

``simulate`` needs nothing. ``sparse`` and ``auto`` need a device with sparse tensor cores, a 2:4
(or 1:2) operand of a plain matrix product in 16 bits, and a predicted or measured gain. On the
CPU ``sparse`` runs the same operators without a gain, and ``auto`` simulates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from nmcompile.compressed.hardware import Target, target_of
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import PolicyError
from nmcompile.execution.cost import Estimate, predict
from nmcompile.execution.measure import measure
from nmcompile.gemm import Gemm, Op, Pruning, Role, size_hint
from nmcompile.graph.find_gemms import is_pointwise
from nmcompile.policy import Policy, Rule

#: What a sparse product is on a CPU.
ON_CPU = "sparse on the CPU: operands are decoded and multiplied densely"


@dataclass(frozen=True)
class Execution:
    """``how``: "sparse", "simulate" or "dense"; the reason; layout and estimate where sparse."""

    how: str
    reason: str = ""
    layout: Layout | None = None
    estimate: Estimate | None = None


def choose(gemm: Gemm, pruning: Pruning, rule: Rule, policy: Policy, autotune: bool) -> Execution:
    """How the product runs.

    Raises:
        PolicyError: the rule asks for sparse, the product cannot, and ``fallback = "error"``.
    """
    wanted = rule.execution or policy.execution
    if wanted == "simulate":
        return Execution("simulate")
    device = gemm.device.split(":")[0]
    target = target_of(gemm.device)
    if wanted == "auto" and (device == "cpu" or target.layout is None):
        lacking = target.reason or f"no sparse tensor core product on {device}"
        return Execution("simulate", f"auto: {lacking}")
    obstacle = target.reason or _obstacle(gemm, pruning)
    estimate = None
    if not obstacle and device != "cpu":
        estimate = _estimate(gemm, pruning, target, autotune)
        obstacle = _too_slow(estimate, gemm, policy)
    if not obstacle:
        note = str(estimate) if estimate else ON_CPU
        return Execution("sparse", note, target.layout, estimate)
    fallback = rule.fallback or policy.fallback
    if fallback == "error":
        raise PolicyError(
            f"{rule.label}: {gemm.path or gemm.node.name} ({gemm.role}) asks for "
            f'execution = "{wanted}", but {obstacle}; write execution = "simulate" '
            'or fallback = "simulate" or "dense"'
        )
    if fallback == "dense":
        reason = f"execution = {wanted}, fallback = dense: {obstacle}"
        return Execution("dense", reason, estimate=estimate)
    return Execution("simulate", f"fallback: {obstacle}", estimate=estimate)


def _obstacle(gemm: Gemm, pruning: Pruning) -> str:
    """Why this product has no sparse form on any device; empty where it has one."""
    nm = pruning.format
    if (nm.n, nm.m) not in ((2, 4), (1, 2)):
        return f"sparse tensor cores take 2:4 and 1:2, not {nm}"
    if gemm.dtype not in ("bfloat16", "float16") and not gemm.device.startswith("cpu"):
        return f"sparse tensor cores take bfloat16 and float16 here, not {gemm.dtype}"
    if gemm.op is Op.CONV:
        return _convolution_obstacle(gemm, pruning)
    value = gemm.node.meta["val"]
    if value.dim() != 2:
        return "a batched product has no sparse library call"
    if gemm.node.kwargs:
        given = ", ".join(gemm.node.kwargs)
        return f"{gemm.target} with {given} is no plain product"
    return ""


def _convolution_obstacle(gemm: Gemm, pruning: Pruning) -> str:
    if not is_pointwise(gemm.node) or gemm.sizes[0] != 1:
        return (
            "only 1x1 convolutions of stride 1 are plain products; other kernels would have to "
            "write out their windows (im2col), which costs more than the sparse product gains"
        )
    if pruning.exact:
        return 'backward = "exact" of a sparse convolution is not written'
    dense = [a for a in gemm.node.args[:2] if isinstance(a, fx.Node)]
    images = [a for a in dense if a.meta["val"].dim() == 4]
    wanted = images[:2] if gemm.role is Role.WGRAD else images[:1]
    if not all(_is_channels_last(a) for a in wanted):
        return "its input is not channels-last: call .to(memory_format=torch.channels_last)"
    return ""


def _is_channels_last(node: fx.Node) -> bool:
    value = node.meta["val"]
    return bool(value.is_contiguous(memory_format=torch.channels_last))


def _estimate(gemm: Gemm, pruning: Pruning, target: Target, autotune: bool) -> Estimate | None:
    _, m, n, k = (size_hint(s) for s in gemm.sizes)
    left = pruning.operand is gemm.lhs
    rows, columns = (m, n) if left else (n, m)
    assert target.layout is not None
    if autotune:
        kind = (pruning.method, target.layout, gemm.dtype, gemm.device)
        return measure(rows, columns, k, left, *kind)
    if target.ceilings is None:
        return None
    return predict(rows, columns, k, pruning.method, target.layout, target.ceilings)


def _too_slow(estimate: Estimate | None, gemm: Gemm, policy: Policy) -> str:
    if estimate is None:
        return (
            f"nothing is known about the speed of {gemm.device}: "
            'measure with options={"nm.autotune": True}'
        )
    if estimate.speedup < policy.margin:
        return f"no gain of {policy.margin:g}x: {estimate}"
    return ""
