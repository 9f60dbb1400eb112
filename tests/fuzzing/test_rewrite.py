"""``nmcompile.rewrite`` of steps traced by hand: random networks, compared with the simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from fuzzing.case import Case, Tally
from fuzzing.compare import compare_expectation, compare_masked
from fuzzing.execute import Results, leaves
from fuzzing.network import load
from fuzzing.policies import DETERMINISTIC, UNBIASED
from fuzzing.rewritten import RewrittenNetwork, loss_of, simulate_step, without_paths
from fuzzing.rounding import dtypes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def steps(
    seeds: range, kind: str
) -> Iterator[tuple[RewrittenNetwork, Results, Callable[[], Results]]]:
    """The networks in float64 with a gradient, under their policies, that can be judged.

    Inductor, and so the simulation, writes tiny products as sums; a step traced by hand has them.
    What the report itself calls incomplete or a guess is not judged either.
    """
    for case in map(without_paths, map(Case.of, seeds)):
        program = load(case.network)
        if case.kind != kind or dtypes(case.network) != {torch.float64} or not leaves(program):
            continue
        if not loss_of(program.model(*program.inputs)).requires_grad:
            continue
        simulation, expected = simulate_step(case)
        rewritten = RewrittenNetwork(case)
        told = any(s.guess or "reads the unpruned" in s.reason for s in rewritten.sites)
        followed = all(p.followed for p in simulation.products)
        if followed and not (told or rewritten.holds_tensors or simulation.decomposed):
            yield rewritten, expected, lambda case=case: simulate_step(case)[1]  # type: ignore[misc]


def pruned(networks: list[RewrittenNetwork]) -> int:
    return sum(site.pruned is not None for network in networks for site in network.sites)


def test_rewritten_networks_equal_the_simulation() -> None:
    tally, networks = Tally(), []
    for rewritten, expected, again in steps(range(150), DETERMINISTIC):
        rounding = [None if e is None else torch.tensor(1e-9) for e in expected]
        compare_masked("masks", rewritten.run(), expected, rounding, again, tally)
        networks.append(rewritten)
    assert tally.checks["masks"] - tally.checks["masks: a tie"] >= 25
    assert pruned(networks) >= 80


def test_rewritten_random_masks_are_unbiased() -> None:
    tally, networks = Tally(), []
    for rewritten, expected, again in steps(range(200), UNBIASED):
        compare_expectation(rewritten, expected, again, tally)
        networks.append(rewritten)
    assert tally.checks["expectation"] - tally.checks["expectation: a tie"] >= 5
    assert pruned(networks) >= 15
