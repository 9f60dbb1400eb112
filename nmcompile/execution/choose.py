"""Whether a pruned product runs on sparse tensor cores, is simulated, or stays dense, and why.

``simulate`` needs nothing. ``sparse`` and ``auto`` need a device with sparse tensor cores, a 2:4
(or 1:2) operand of a plain matrix product in 16 bits, and a predicted or measured gain. On the
CPU ``sparse`` runs the same operators without a gain, and ``auto`` simulates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from nmcompile.compressed.hardware import Target, target_of
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import PolicyError
from nmcompile.execution.cost import Estimate, predict
from nmcompile.execution.measure import measure
from nmcompile.gemm import Gemm, Op, Pruning, Role, size_hint
from nmcompile.graph.aten import argument
from nmcompile.graph.convolution import Geometry
from nmcompile.policy import Policy, Rule
from nmcompile.reason import Code, Reason, sentence

How = Literal["sparse", "simulate", "dense"]

#: What a sparse product is on a CPU.
ON_CPU = Reason(Code.DECODED, "sparse on the CPU: operands are decoded and multiplied densely")


@dataclass(frozen=True)
class Execution:
    """How a product runs and why; ``layout`` of the compressed operand where it runs sparse.

    ``estimate`` is there where dense and sparse times were compared.
    """

    how: How
    reasons: tuple[Reason, ...] = ()
    layout: Layout | None = None
    estimate: Estimate | None = None

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return sentence(self.reasons)


def choose(gemm: Gemm, pruning: Pruning, rule: Rule, policy: Policy, autotune: bool) -> Execution:
    """How the product runs.

    Raises:
        PolicyError: the rule asks for sparse, the product cannot, and ``fallback = "error"``.
    """
    wanted = rule.execution or policy.execution
    if wanted == "simulate":
        return Execution("simulate")
    device = gemm.device.partition(":")[0]
    target = target_of(gemm.device)
    if wanted == "auto" and (device == "cpu" or target.layout is None):
        lacking = target.reason or f"no sparse tensor core product on {device}"
        return Execution("simulate", (Reason(Code.AUTO_SIMULATES, f"auto: {lacking}"),))
    obstacle = _obstacle(gemm, pruning, target)
    estimate = None
    if obstacle is None and device != "cpu":
        estimate = _estimate(gemm, pruning, target, autotune)
        obstacle = _too_slow(estimate, gemm, policy)
    if obstacle is None:
        note = Reason(Code.GAIN, str(estimate)) if estimate else ON_CPU
        return Execution("sparse", (note,), target.layout, estimate)
    fallback = rule.fallback or policy.fallback
    if fallback == "error":
        raise PolicyError(
            f'{rule.label}: {gemm.where} ({gemm.role}) asks for execution = "{wanted}", but '
            f'{obstacle}; write execution = "simulate" or fallback = "simulate" or "dense"'
        )
    if fallback == "dense":
        declined = Reason(Code.DECLINED, f"execution = {wanted}, fallback = dense")
        return Execution("dense", (declined, obstacle), estimate=estimate)
    instead = Reason(Code.FALLBACK, f"execution = {wanted}, fallback = simulate")
    return Execution("simulate", (instead, obstacle), estimate=estimate)


def _obstacle(gemm: Gemm, pruning: Pruning, target: Target) -> Reason | None:
    """Why this product has no sparse form there; None where it has one."""
    nm = pruning.format
    if target.layout is None:
        return Reason(Code.NO_DEVICE, target.reason)
    if (nm.n, nm.m) not in ((2, 4), (1, 2)):
        return Reason(Code.SPARSE_FORMAT, f"sparse tensor cores take 2:4 and 1:2, not {nm}")
    if gemm.dtype not in ("bfloat16", "float16") and gemm.device != "cpu":
        text = f"sparse tensor cores take bfloat16 and float16 here, not {gemm.dtype}"
        return Reason(Code.SPARSE_DTYPE, text)
    if gemm.op is Op.CONV:
        return _convolution_obstacle(gemm, pruning)
    if gemm.node.meta["val"].dim() != 2:
        return Reason(Code.BATCHED, "a batched product has no sparse library call")
    if gemm.node.kwargs:
        given = ", ".join(gemm.node.kwargs)
        return Reason(Code.NOT_PLAIN, f"{gemm.target} with {given} is no plain product")
    return None


def _convolution_obstacle(gemm: Gemm, pruning: Pruning) -> Reason | None:
    if not Geometry.of(gemm.node).is_product or gemm.sizes[0] != 1:
        return Reason(
            Code.CONVOLUTION,
            "only 1x1 convolutions of stride 1 are plain products; other kernels would have to "
            "write out their windows (im2col), which costs more than the sparse product gains",
        )
    if pruning.exact:
        text = 'backward = "exact" of a sparse convolution is not written'
        return Reason(Code.EXACT_CONVOLUTION, text)
    if not all(_is_channels_last(image) for image in _images(gemm)):
        text = "its input is not channels-last: call .to(memory_format=torch.channels_last)"
        return Reason(Code.CHANNELS_LAST, text)
    return None


def _images(gemm: Gemm) -> list[fx.Node]:
    """The operands that become matrices: X in fprop, dY in dgrad, both in wgrad."""
    both = [argument(gemm.node, o.arg) for o in gemm.operands]
    return both if gemm.role is Role.WGRAD else both[:1]


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


def _too_slow(estimate: Estimate | None, gemm: Gemm, policy: Policy) -> Reason | None:
    if estimate is None:
        text = (
            f"nothing is known about the speed of {gemm.device}: "
            'measure with options={"nm.autotune": True}'
        )
        return Reason(Code.UNKNOWN_SPEED, text)
    if estimate.speedup < policy.margin:
        return Reason(Code.NO_GAIN, f"no gain of {policy.margin:g}x: {estimate}")
    return None
