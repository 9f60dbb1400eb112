"""Steps along the hull, and budgets."""

from __future__ import annotations

import itertools
import random

import pytest

from nmcompile.tuning.choose import Option, chosen, least_cost, steps, within


def test_what_a_mixture_of_others_beats_is_no_step() -> None:
    options = {
        "a": [Option("small", 1.0, 1.0), Option("bad", 5.0, 2.0), Option("large", 6.0, 3.0)],
        "b": [Option("only", 3.0, 2.0), Option("none", 0.0, 0.0)],
    }
    found = [(s.key, s.option.name, s.cost, s.gain) for s in steps(options)]
    assert found == [("a", "small", 1.0, 1.0), ("b", "only", 3.0, 2.0), ("a", "large", 5.0, 2.0)]


def test_of_equal_gains_the_cheaper_one_is_taken() -> None:
    (step,) = steps({"a": [Option("1:2", 2.0, 1.0), Option("4:8", 1.0, 1.0)]})
    assert step.option.name == "4:8"


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_as_much_gain_costs_less(seed: int) -> None:
    """After each whole step the greedy solution is an optimum, by trying all choices."""
    draw = random.Random(seed)
    options = {
        key: [Option(f"{n}", draw.random(), draw.random() + 0.1) for n in range(2)]
        for key in "abcd"
    }
    found = steps(options)
    every = list(itertools.product(*([None, *some] for some in options.values())))
    for count in range(1, len(found) + 1):
        have = chosen(found[:count]).values()
        gain, cost = sum(o.gain for o in have), sum(o.cost for o in have)
        sums = [[sum(getattr(o, k) for o in c if o) for k in ("gain", "cost")] for c in every]
        assert cost <= min(c for g, c in sums if g >= gain - 1e-9) + 1e-9


def test_budgets() -> None:
    options = {key: [Option("o", cost, 1.0)] for key, cost in zip("abc", (1, 2, 4), strict=True)}
    found = steps(options)
    flops = dict.fromkeys("abc", 10.0)
    assert [s.key for s in least_cost(found, flops, 11)] == ["a", "b"]
    assert [s.key for s in least_cost(found, flops, 20)] == ["a", "b"]
    assert [s.key for s in within(found, 3.5)] == ["a", "b"]
    assert within(found, 0.5) == []


def test_a_step_that_does_not_fit_ends_those_of_its_product_alone() -> None:
    options = {
        "a": [Option("one", 1.0, 2.0), Option("two", 9.0, 4.0)],
        "b": [Option("one", 4.5, 1.0)],
    }
    assert [s.key for s in within(steps(options), 6.0)] == ["a", "b"]
