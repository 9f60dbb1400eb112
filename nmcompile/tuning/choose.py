"""Which products to prune for a budget: those that cost the loss least for what they gain.

Each product has several ways to be pruned, of which those count that no mixture of others beats
(the convex hull of gain and cost); from one to the next is a step. Steps are taken by cost over
gain until the budget is met: the solution of the continuous knapsack, cut at whole steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass(frozen=True)
class Option:
    """One way to prune a product: what it costs the loss, and what it gains."""

    name: str
    cost: float
    gain: float


@dataclass(frozen=True)
class Step(Generic[K]):
    """Let ``key`` have ``option``, in the place of ``before`` (None: dense)."""

    key: K
    option: Option
    before: Option | None

    @property
    def cost(self) -> float:
        return self.option.cost - (self.before.cost if self.before else 0.0)

    @property
    def gain(self) -> float:
        return self.option.gain - (self.before.gain if self.before else 0.0)


def steps(options: Mapping[K, Sequence[Option]]) -> list[Step[K]]:
    """All steps, the cheapest for its gain first."""
    found = [step for key, some in options.items() for step in _hull(key, some)]
    return sorted(found, key=lambda s: s.cost / s.gain)


def _hull(key: K, options: Sequence[Option]) -> Iterator[Step[K]]:
    """From dense along the lower convex hull of gain and cost."""
    left, before = [o for o in options if o.gain > 0], None
    while left:
        ahead = [Step(key, o, before) for o in left]
        best = min(ahead, key=lambda step: (step.cost / step.gain, -step.gain))
        yield best
        before = best.option
        left = [o for o in left if o.gain > best.option.gain]


def least_cost(found: Sequence[Step[K]], flops: Mapping[K, float], wanted: float) -> list[Step[K]]:
    """The steps after which products of ``wanted`` FLOPs are pruned; all where those are fewer."""
    taken: list[Step[K]] = []
    pruned: set[K] = set()
    for step in found:
        if sum(flops[key] for key in pruned) >= wanted:
            break
        taken.append(step)
        pruned.add(step.key)
    return taken


def within(found: Sequence[Step[K]], cost: float) -> list[Step[K]]:
    """The steps that fit into a cost, each after those of its product before it."""
    taken: list[Step[K]] = []
    spent, refused = 0.0, set()
    for step in found:
        if step.key in refused or spent + step.cost > cost:
            refused.add(step.key)
            continue
        taken.append(step)
        spent += step.cost
    return taken


def chosen(taken: Sequence[Step[K]]) -> dict[K, Option]:
    """What each product has after these steps."""
    return {step.key: step.option for step in taken}
