"""Random networks in each way to execute them: sparse as simulated, compiled as interpreted."""

from __future__ import annotations

import pytest
import torch

from fuzzing.case import Case
from fuzzing.checks import check
from fuzzing.execute import PlannedNetwork
from fuzzing.network import load
from fuzzing.rounding import dtypes
from nmcompile import Policy, Rule

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

GRADIENTS = Rule(prune="gradient", format="2:4")
SPARSE_RULES = {
    "full-exact": [
        Rule(prune="activation", role="fprop", format="2:4", backward="exact"),
        GRADIENTS,
    ],
    "weights": [
        Rule(prune="weight", role="fprop", format="2:4", method="mse", backward="exact"),
        Rule(prune="weight", role="dgrad", format="1:2", method="mse"),
        GRADIENTS,
    ],
    "others": [
        Rule(prune="activation", role="wgrad", format="2:4", method="mse"),
        Rule(prune="gradient", role="dgrad", format="1:2"),
        Rule(prune="activation", role="fprop", format="2:4"),
    ],
}


def test_sparse_networks_equal_simulated_ones() -> None:
    """With random masks, too: a seed gives both the same."""
    sparse: dict[str, list[str]] = {name: [] for name in SPARSE_RULES}
    for seed in range(36):
        network, name = Case.of(seed).network, list(SPARSE_RULES)[seed % 3]
        if dtypes(network) != {torch.float64}:
            continue
        found = []
        for execution in ("simulate", "sparse"):
            policy = Policy(rules=SPARSE_RULES[name], execution=execution, fallback="simulate")
            planned = PlannedNetwork(load(network), policy)
            torch.manual_seed(0)
            found.append(planned.run())
        for a, b in zip(*found, strict=True):
            if a is not None or b is not None:
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        sparse[name] += [str(s.method) for s in planned.sites if s.execution == "sparse"]
    assert all(methods.count("mvue") >= 5 for methods in sparse.values())
    assert all(len(methods) >= 15 for methods in sparse.values())


@pytest.mark.parametrize("seed", [5, 11, 13])
def test_policy_dense_is_inductor_bit_for_bit(seed: int) -> None:
    assert check(Case.of(seed, compiled_share=1)).checks["compiled dense"] == 1


@pytest.mark.parametrize("seed", [10, 24, 34, 50, 56])
def test_compiled_networks_equal_the_simulation(seed: int) -> None:
    tally = check(Case.of(seed, compiled_share=1))
    assert tally.checks["compiled masks"] == tally.checks["products"] == 1
