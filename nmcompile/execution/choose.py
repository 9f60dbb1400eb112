"""Whether a pruned product runs on sparse tensor cores, is simulated, or stays dense, and why.

``simulate`` needs nothing. ``sparse`` and ``auto`` need a target with sparse tensor cores, a 2:4
(or 1:2) operand of a plain matrix product in 16 bits, and a predicted or measured gain of the
products that share the compressed operand. On the CPU ``sparse`` runs the same operators without a
gain, and ``auto`` simulates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx

from nmcompile.compressed.layouts import Layout
from nmcompile.errors import PolicyError
from nmcompile.execution.cost import Estimate, Kind, Predicted, Product
from nmcompile.execution.measure import Measured
from nmcompile.execution.targets import Target, target_of
from nmcompile.execution.units import Unit, decide
from nmcompile.gemm import Gemm, Op, Pruning, Role, size_hint
from nmcompile.graph.aten import argument
from nmcompile.graph.convolution import Geometry
from nmcompile.graph.float8 import Cast, cast_of
from nmcompile.graph.grouped import is_grouped
from nmcompile.policy import Policy, Rule
from nmcompile.reason import Code, Reason, sentence

How = Literal["sparse", "simulate", "dense"]

#: What a sparse product is on a CPU.
ON_CPU = Reason(Code.DECODED, "sparse on the CPU: operands are decoded and multiplied densely")
#: Why a grouped product does not run sparse.
GROUPED = Reason(Code.GROUPED, "grouped products have no sparse form on a GPU yet")
_SIXTEEN_BITS = ("bfloat16", "float16")


@dataclass(frozen=True)
class Execution:
    """How a product runs and why; ``layout`` of the compressed operand where it runs sparse.

    ``estimate`` is there where dense and sparse times were compared: of this product, with its
    share of what the products of its ``unit`` spend together.
    """

    how: How
    reasons: tuple[Reason, ...] = ()
    layout: Layout | None = None
    estimate: Estimate | None = None
    unit: int | None = None

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return sentence(self.reasons)


@dataclass(frozen=True)
class Request:
    """A product that a rule prunes, and what compressing its operand would be.

    ``key`` is equal for two products whose operands one kernel can compress with one read; the
    other fields are those of ``cost.Product`` and ``cost.Kind``.
    """

    site: int
    gemm: Gemm
    pruning: Pruning
    rule: Rule
    key: Any
    along: int = 1
    stream: int = 0
    bias: bool = False
    unpacked: int = 0

    @property
    def product(self) -> Product:
        """As the cost model sees it, with the sizes that were traced."""
        _, m, n, k = (size_hint(s) for s in self.gemm.sizes)
        left = self.pruning.operand is self.gemm.lhs
        rows, columns = (m, n) if left else (n, m)
        beside = (self.along, self.stream, self.bias, self.unpacked)
        return Product(self.site, rows, columns, k, left, *beside)


@dataclass
class Chosen:
    """How each requested product runs, by site, and the units that were weighed."""

    executions: dict[int, Execution] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)


def choose(
    requests: Sequence[Request],
    policy: Policy,
    autotune: bool = False,
    target: Target | None = None,
    first_unit: int = 0,
    captured: bool = False,
) -> Chosen:
    """How each product runs; those that share a compressed operand are decided together.

    Args:
        requests: the products of a graph that its rules prune.
        policy: for execution, fallback and margin, where a rule does not say.
        autotune: measure the products on the device instead of predicting them.
        target: to decide for; None for the device of each product.
        first_unit: the number of the first unit.
        captured: whether the graph is replayed as a CUDA graph, without the host.

    Raises:
        PolicyError: a rule asks for sparse, its product cannot, and ``fallback = "error"``.
    """
    chosen = Chosen()
    candidates: dict[Any, list[Request]] = {}
    declined: dict[int, Reason] = {}
    for r in requests:
        place = target or target_of(r.gemm.device)
        early = _without_figures(r, policy, place)
        if isinstance(early, Execution):
            chosen.executions[r.site] = early
        elif early is not None:
            declined[r.site] = early
        else:
            candidates.setdefault(_shared(r, place), []).append(r)
    groups: list[tuple[Kind, list[Request], Target, Predicted]] = []
    for some in candidates.values():
        place = target or target_of(some[0].gemm.device)
        clock = _clock(place, some[0].gemm.device, autotune)
        if clock is None:
            declined |= {r.site: _unknown(place, r.gemm) for r in some}
        else:
            groups.append((_kind(some[0], place), some, place, clock))

    def decided(hidden: bool) -> list[Unit]:
        return [
            decide(i, [r.product for r in some], kind, clock, policy.margin, hidden)
            for i, (kind, some, _, clock) in enumerate(groups, first_unit)
        ]

    ahead = chosen.units = decided(hidden=True)
    if not captured and not _host_is_ahead(ahead, [clock for *_, clock in groups]):
        chosen.units = decided(hidden=False)
    for unit, free, (_, _, place, _) in zip(chosen.units, ahead, groups, strict=True):
        chosen.executions |= {site: _sparse(unit, site, place) for site in unit.sparse}
        declined |= {s: _no_gain(unit, s, policy, free) for s in unit.sites if s not in unit.sparse}
    declined |= dict(_in_sixteen_bits([r for r in requests if r.site in declined], policy, target))
    weighed = {site: unit for unit in chosen.units for site in unit.sites}
    for r in [r for r in requests if r.site in declined]:
        execution = _declined(r, policy, declined[r.site])
        if r.site in weighed:
            unit = weighed[r.site]
            execution = replace(execution, estimate=unit.of(r.site), unit=unit.number)
        chosen.executions[r.site] = execution
    return chosen


def _host_is_ahead(units: Sequence[Unit], clocks: Sequence[Predicted]) -> bool:
    """Whether the sparse calls of a graph take the host less time than its products the device."""
    host = sum(len(u.sparse) * c.setup for u, c in zip(units, clocks, strict=True))
    return host <= sum(unit.seconds for unit in units)


def _without_figures(r: Request, policy: Policy, target: Target) -> Execution | Reason | None:
    """What needs no figure of the target: how it runs, what is in the way of sparse, or None."""
    wanted = r.rule.execution or policy.execution
    if wanted == "simulate":
        return Execution("simulate")
    if wanted == "auto" and (target.decodes or target.layout is None):
        lacking = target.reason or f"no sparse tensor core product on {target.name}"
        return Execution("simulate", (Reason(Code.AUTO_SIMULATES, f"auto: {lacking}"),))
    if wanted == "auto" and is_grouped(r.gemm.node):
        return Execution("simulate", (replace(GROUPED, text=f"auto: {GROUPED}"),))
    obstacle = _obstacle(r.gemm, r.pruning, target, r.gemm.dtype)
    if obstacle is None and target.decodes:
        return Execution("sparse", (ON_CPU,), target.layout)
    return obstacle


def _shared(r: Request, target: Target) -> Any:
    """Equal for requests that are decided together: a library packs one orientation at a time."""
    alone = target.layout is not None and target.layout.opaque
    return (r.key, r.along, r.stream) if alone else r.key


def _clock(target: Target, device: str, autotune: bool) -> Predicted | None:
    if autotune:
        return Measured(target, device)
    return Predicted(target) if target.figures else None


def _kind(r: Request, target: Target, dtype: str | None = None) -> Kind:
    assert target.layout is not None
    return Kind(r.pruning.method, target.layout, dtype or r.gemm.dtype, r.gemm.device)


def _sparse(unit: Unit, site: int, target: Target) -> Execution:
    text = str(unit.of(site))
    if len(unit.sparse) > 1:
        text += f", with its share of unit {unit.number}"
    gain = Reason(Code.GAIN, text)
    return Execution("sparse", (gain,), target.layout, unit.of(site), unit.number)


def _no_gain(unit: Unit, site: int, policy: Policy, free: Unit) -> Reason:
    """``free``: the unit as it would be decided if nothing waited for the host."""
    beside = f" beside the rest of unit {unit.number}" if unit.sparse else ""
    text = f"no gain of {policy.margin:g}x{beside}: {unit.of(site)}"
    if site in free.sparse:
        text += (
            f"; with CUDA graphs (triton.cudagraphs), where the host's time does not count, it "
            f"would run sparse: {free.of(site).speedup:.2f}x"
        )
    return Reason(Code.NO_GAIN, text)


def _unknown(target: Target, gemm: Gemm) -> Reason:
    text = (
        f"nothing is known about the speed of {target.gpu or gemm.device}: "
        'measure with options={"nm.autotune": True}'
    )
    return Reason(Code.UNKNOWN_SPEED, text)


def _declined(r: Request, policy: Policy, obstacle: Reason) -> Execution:
    """What the rule says for a product that does not run sparse."""
    wanted, fallback = r.rule.execution or policy.execution, r.rule.fallback or policy.fallback
    if fallback == "error":
        raise PolicyError(
            f'{r.rule.label}: {r.gemm.where} ({r.gemm.role}) asks for execution = "{wanted}", but '
            f'{obstacle}; write execution = "simulate" or fallback = "simulate" or "dense"'
        )
    if fallback == "dense":
        text = f"execution = {wanted}, fallback = dense"
        return Execution("dense", (Reason(Code.DECLINED, text), obstacle))
    instead = Reason(Code.FALLBACK, f"execution = {wanted}, fallback = simulate")
    return Execution("simulate", (instead, obstacle))


def _obstacle(gemm: Gemm, pruning: Pruning, target: Target, dtype: str) -> Reason | None:
    """Why this product has no sparse form there, in this dtype; None where it has one."""
    nm = pruning.format
    if target.layout is None:
        return Reason(Code.NO_DEVICE, target.reason)
    if (nm.n, nm.m) not in ((2, 4), (1, 2)):
        return Reason(Code.SPARSE_FORMAT, f"sparse tensor cores take 2:4 and 1:2, not {nm}")
    if isinstance(cast_of(gemm.node, pruning.operand.arg), Cast):
        text = "fp8 is simulated so far: the GPU's own sparse product in fp8 is not called yet"
        return Reason(Code.EIGHT_BIT, text)
    if dtype not in _SIXTEEN_BITS and not target.decodes:
        return _dtype_obstacle(dtype)
    if is_grouped(gemm.node):
        return GROUPED
    if not gemm.has_hints and not target.decodes:
        text = "a size of it is data, known when it runs alone: no gain can be predicted"
        return Reason(Code.UNKNOWN_SIZE, text)
    if gemm.op is Op.CONV:
        return _convolution_obstacle(gemm, pruning)
    if gemm.node.meta["val"].dim() != 2:
        return Reason(Code.BATCHED, "a batched product has no sparse library call")
    if gemm.node.kwargs:
        given = ", ".join(gemm.node.kwargs)
        return Reason(Code.NOT_PLAIN, f"{gemm.target} with {given} is no plain product")
    return None


def _dtype_obstacle(dtype: str) -> Reason:
    text = f"sparse tensor cores take bfloat16 and float16 here, not {dtype}"
    if dtype == "float32":
        text += ": TF32 products stay dense or simulated"
    return Reason(Code.SPARSE_DTYPE, text)


def _in_sixteen_bits(
    declined: Sequence[Request], policy: Policy, target: Target | None
) -> Iterator[tuple[int, Reason]]:
    """For float32 products on a GPU with figures: what bfloat16 autocast would give them."""
    groups: dict[Any, list[Request]] = {}
    for r in declined:
        place = target or target_of(r.gemm.device)
        known = place.figures is not None and place.layout is not None
        blocked = r.gemm.dtype == "float32" and not place.decodes and known
        if blocked and _obstacle(r.gemm, r.pruning, place, "bfloat16") is None:
            groups.setdefault(_shared(r, place), []).append(r)
    for some in groups.values():
        place = target or target_of(some[0].gemm.device)
        kind = _kind(some[0], place, dtype="bfloat16")
        unit = decide(0, [r.product for r in some], kind, Predicted(place), policy.margin)
        for r in some:
            text = f"{_dtype_obstacle('float32')}; under bfloat16 autocast {unit.of(r.site)}"
            yield r.site, Reason(Code.SPARSE_DTYPE, text)


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
