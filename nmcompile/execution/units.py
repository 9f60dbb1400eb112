"""Decide the products that share a compressed operand together, at what each adds to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nmcompile.execution.cost import Estimate, Kind, Predicted, Product, UnitEstimate, estimate


@dataclass(frozen=True)
class Unit:
    """What was decided for the sites of a unit: those of ``sparse`` run sparse, others do not.

    ``estimate`` is that of the sparse ones, or where there are none, of the subset that came
    nearest to a gain. ``beside`` is what each other product would add to it.
    """

    number: int
    sites: tuple[int, ...]
    sparse: tuple[int, ...]
    estimate: UnitEstimate
    beside: dict[int, Estimate]

    @property
    def seconds(self) -> float:
        """Of the device, for all products as they were decided."""
        if not self.sparse:
            return sum(self.of(site).dense for site in self.sites)
        dense = sum(self.of(site).dense for site in self.sites if site not in self.sparse)
        return self.estimate.weighed.sparse + dense

    def of(self, site: int) -> Estimate:
        """Dense and sparse seconds of one product, in this unit."""
        return self.beside[site] if site in self.beside else self.estimate.of(site)


def decide(
    number: int,
    products: Sequence[Product],
    kind: Kind,
    clock: Predicted,
    margin: float,
    hidden: bool = False,
) -> Unit:
    """The subset that saves most, of those whose dense over sparse time reaches ``margin``.

    Products are left out in the order of what they gain without the shared terms, so that n
    products are n subsets; what a compress kernel costs hardly depends on which of them ask.
    ``hidden``: the device does not wait for the host.
    """
    count = partial(estimate, kind=kind, clock=clock, hidden=hidden)
    alone = count(products).products
    best_first = sorted(products, key=lambda p: alone[p.site].own - alone[p.site].dense)
    subsets = [best_first[: n + 1] for n in range(len(best_first))]
    estimates = [count(subset) for subset in subsets]
    winning = [e for e in estimates if e.weighed.speedup >= margin]
    if winning:  # a margin below 1 accepts a loss: then all that it accepts
        chosen = max(winning, key=lambda e: (max(0.0, e.gain), len(e.products)))
    else:
        chosen = max(estimates, key=lambda e: e.weighed.speedup)
    left_out = [p for p in products if p.site not in chosen.products]
    inside = [p for p in products if p.site in chosen.products]
    beside = {p.site: _added(p, chosen, count([*inside, p])) for p in left_out}
    sites = tuple(p.site for p in products)
    sparse = tuple(p.site for p in inside) if winning else ()
    return Unit(number, sites, sparse, chosen, beside)


def _added(p: Product, chosen: UnitEstimate, both: UnitEstimate) -> Estimate:
    """What the product costs beside those that were chosen: what is there with ``both``."""
    return Estimate(
        both.products[p.site].dense, both.weighed.sparse - chosen.weighed.sparse, both.how
    )
