"""What pruning each product costs the loss and gains, from what was measured.

Of an activation or a weight, the loss to second order, with the empirical Fisher matrix for its
curvature:

    cost = |sum_t s_t| + terms / 2 * sum_t s_t^2        s_t = <dL/dy_t, dy_t>

where dy_t is the change of row t of the product's result, and ``terms`` how many independent
predictions the loss is the mean of. Nothing tells how many these are, so that is measured too: as
many as make the costs of all products add up to what pruning all of them really costs.

Of a neural gradient, the variance that its random masks add to a gradient, over the variance that
the gradient has anyway, from one mini-batch to the next: of the weight gradient for wgrad; for
dgrad, of what is handed down, whose own variance is its square (further down it is summed over
samples), and so of every weight gradient that it reaches (``flow``). Weighted by the share of the
weights concerned it is ``noise``: by how much the gradients of the model become noisier, on average
over its weights. ``noise_cost`` is what a noise of 1 costs: half the batch size has as much.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.report.rows import Frozen
from nmcompile.tuning.measure import Moments, Sums
from nmcompile.tuning.products import Choice, Found, Key, Product, Slot


class Cost(Frozen):
    """One way to prune the products of a row. ``name``: the operand and the format."""

    name: str
    prune: OperandKind
    format: str
    loss: float = Field(description="expected increase of the loss; of noise, at noise_cost")
    noise: float | None = Field(
        default=None,
        description="added variance over mini-batch variance, by share of weights; of a gradient",
    )
    ratio: float | None = Field(default=None, description="the same of this product's own result")
    first: float | None = Field(default=None, description="expected change, to first order")
    gain: float = Field(description="seconds that the target saves, or FLOPs that are left out")


class Row(Frozen):
    """Products that no rule tells apart: of one module, operator and role; ``flops`` of a step."""

    module: str
    module_class: str
    op: Op
    role: Role
    products: int
    flops: float
    dtype: str
    costs: tuple[Cost, ...]
    chosen: str | None = Field(default=None, description="the name of a cost; None: dense")
    reason: str = Field(default="", description="why nothing can be chosen, where that is so")
    prunable: bool = Field(description="whether a rule could prune it, measured or not")

    @property
    def key(self) -> Key:
        return Key(self.module, self.module_class, self.op, self.role)

    @property
    def choice(self) -> Cost | None:
        """What was chosen."""
        return next((c for c in self.costs if c.name == self.chosen), None)


def rows_of(
    everything: Found, sums: Sums, terms: float, noise_cost: float, timed: bool
) -> tuple[Row, ...]:
    """A row for each key, in the order in which products were found.

    Args:
        everything: the products of all graphs.
        sums: what was measured of them.
        terms, noise_cost: what costs are made of, as above.
        timed: whether gains are times.
    """
    found: dict[Key, dict[Slot, list[Product]]] = defaultdict(lambda: defaultdict(list))
    for p in everything.products:
        if not p.gemm.again:
            found[p.slot.key][p.slot].append(p)
    costs = _Costs(sums, _noise(everything, sums), terms, noise_cost, timed)
    return tuple(_row(key, slots, costs) for key, slots in found.items())


@dataclass(frozen=True)
class _Costs:
    """What the costs of rows are made of."""

    sums: Sums
    noise: dict[tuple[Slot, Choice], tuple[float, float]]
    terms: float
    noise_cost: float
    timed: bool

    def of(self, slots: dict[Slot, list[Product]], choice: Choice) -> Cost | None:
        """Of the products of a row; None where none was measured."""
        has = [slot for slot in slots if (slot, choice) in self.sums.moments]
        if not has:
            return None
        words: dict[str, Any] = {"prune": choice.kind, "format": choice.format}
        words["gain"] = sum(self._gain(slots[slot][0], choice) for slot in has)
        if has[0].key.role is Role.FPROP:
            some = [self.sums.moments[slot, choice] for slot in has]
            loss = sum(abs(m.first) + self.terms / 2 * m.second for m in some) / self.sums.batches
            first = sum(m.first for m in some) / self.sums.batches
            return Cost(name=str(choice), loss=loss, first=first, **words)
        parts = [self.noise[slot, choice] for slot in has]
        noise, ratio = sum(r * share for r, share in parts), max(r for r, _ in parts)
        loss = noise * self.noise_cost
        return Cost(name=str(choice), loss=loss, noise=noise, ratio=ratio, **words)

    def runs(self, product: Product) -> float:
        """How often it runs in a step."""
        return self.sums.calls.get(product.slot, 0) / self.sums.batches

    def _gain(self, product: Product, choice: Choice) -> float:
        gain = product.flops * choice.dropped
        if self.timed:
            gain = product.ways[choice].seconds or 0.0 if choice in product.ways else 0.0
        return gain * self.runs(product)


def _row(key: Key, slots: dict[Slot, list[Product]], all_costs: _Costs) -> Row:
    choices = dict.fromkeys(c for some in slots.values() for p in some for c in p.ways)
    costs = tuple(c for choice in choices if (c := all_costs.of(slots, choice)) is not None)
    first = next(iter(slots.values()))[0]
    return Row(
        module=key.module,
        module_class=key.module_class,
        op=key.op,
        role=key.role,
        products=len(slots),
        flops=sum(some[0].flops * all_costs.runs(some[0]) for some in slots.values()),
        dtype=first.gemm.dtype,
        costs=costs,
        reason="" if costs else first.why or _UNSEEN,
        prunable=bool(choices),
    )


_UNSEEN = "no gradient of its result was found: what it costs cannot be measured"


def _noise(everything: Found, sums: Sums) -> dict[tuple[Slot, Choice], tuple[float, float]]:
    """(added over own variance, share of the weights that it concerns) of every gradient."""
    sizes = {s: sig.size for s, sig in sums.signals.items() if s.key.role is Role.WGRAD}
    total = max(1, sum(sizes.values()))
    share = {slot: size / total for slot, size in sizes.items()}
    slots = [p.slot for p in everything.products]
    for flow in everything.flows:
        for source, reached in flow.reached(sums.energies).items():
            far = sum(sizes.get(slots[w], 0) * part for w, part in reached.items()) / total
            share[slots[source]] = max(far, share.get(slots[source], 0.0))
    own: dict[Slot, float] = {}
    for slot, signal in sums.signals.items():
        own[slot] = signal.squares / sums.batches
        if slot.key.role is Role.WGRAD:
            size = 0.0 if signal.total is None else signal.total.square().sum().item()
            own[slot] = variance(signal.squares, size, sums.batches)
    return {
        (slot, choice): (_over(m.noise / sums.batches, own[slot]), share[slot])
        for (slot, choice), m in sums.moments.items()
        if slot in own
    }


def variance(squares: float, total: float, batches: int) -> float:
    """Of a tensor between batches, summed over its elements.

    Args:
        squares: the sum of its squared norms.
        total: the squared norm of its sum.
        batches: at least two.
    """
    return max(0.0, squares - total / batches) / (batches - 1)


def _over(added: float, own: float) -> float:
    if added == 0.0:
        return 0.0
    return added / own if own > 0 else math.inf


def measured_terms(moments: Iterable[Moments], batches: int, increase: float) -> float | None:
    """How many terms make the costs add up to an increase of the loss; None where none do."""
    some = list(moments)
    first = sum(m.first for m in some) / batches
    second = sum(m.second for m in some) / batches
    terms = 2 * (increase - first) / second if second > 0 else 0.0
    return terms if math.isfinite(terms) and terms >= 1 else None
