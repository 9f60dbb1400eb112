"""Weights that several products share, or that are computed from other parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.gemm import OperandKind
from tests.end_to_end.test_identity import blocks_kept
from tests.setups.steps import (
    MSE,
    assert_close,
    assert_dense_is_inductor,
    compiled,
    density,
    eager_step,
    one_step,
)


class Twice(nn.Module):
    """One layer called twice: one weight, two products in each role, one summed gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class TiedAttributes(nn.Module):
    """Two layers that hold the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(16, 16, dtype=torch.float64) for _ in range(2))
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class TiedEmbedding(nn.Module):
    """A language model's head that multiplies with its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(24, 16, dtype=torch.float64)
        self.body = nn.Linear(16, 16, dtype=torch.float64)
        self.lm_head = nn.Linear(16, 24, bias=False, dtype=torch.float64)
        self.lm_head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.body(self.embedding(tokens))))


def weight_norm() -> nn.Module:
    layers = [nn.Linear(16, 16, dtype=torch.float64) for _ in range(2)]
    return nn.Sequential(parametrizations.weight_norm(layers[0]), nn.Tanh(), layers[1])


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).t()


def registered() -> nn.Module:
    model = nn.Sequential(*(nn.Linear(16, 16, dtype=torch.float64) for _ in range(2)))
    for layer in model:
        parametrize.register_parametrization(layer, "weight", Symmetric())
    return model


def rows() -> Tensor:
    return torch.randn(8, 16, dtype=torch.float64)


#: How to make each model and its input; the modules of its products.
MODELS: dict[str, tuple[Any, Any, list[str]]] = {
    "one layer twice": (Twice, rows, ["layer", "layer"]),
    "one parameter in two layers": (TiedAttributes, rows, ["first", "last"]),
    "tied embedding": (TiedEmbedding, lambda: torch.randint(24, (2, 5)), ["body", "lm_head"]),
    "weight norm": (weight_norm, rows, ["0", "2"]),
    "registered parametrization": (registered, rows, ["0", "1"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_kinds(name: str) -> None:
    make, data, modules = MODELS[name]
    model, x = make(), data()
    assert_close(one_step(compiled(model, MSE), model, x), eager_step(model, x))
    sites = nmcompile.last_report().sites
    assert sorted(s.module for s in sites if s.role == "fprop") == modules
    assert sorted(s.module for s in sites if s.role == "wgrad") == modules
    expected = {
        "fprop": {OperandKind.ACTIVATION, OperandKind.WEIGHT},
        "dgrad": {OperandKind.GRADIENT, OperandKind.WEIGHT},
        "wgrad": {OperandKind.GRADIENT, OperandKind.ACTIVATION},
    }
    assert all(set(s.operands) == expected[str(s.role)] for s in sites)
    assert_dense_is_inductor(model, x)


@pytest.mark.slow
@pytest.mark.parametrize("make", [weight_norm, registered])
def test_a_computed_weight_is_pruned_as_a_weight(make: Any) -> None:
    """The mask is of the computed weight; its parameters' gradients are straight-through."""
    model, x = make(), rows()
    rule = Rule(role="fprop", prune="weight", format="2:4", method="mse")
    found = one_step(compiled(model, Policy(rules=[rule])), model, x)
    assert_close(found, eager_step(model, x, masks={("fprop", "weight"): (2, 4)}))


@pytest.mark.slow
def test_the_computed_weight_itself_is_seen_pruned() -> None:
    layer = parametrizations.weight_norm(nn.Linear(16, 16, bias=False))
    rule = Rule(role="fprop", prune="weight", format="2:4")
    seen = compiled(layer, Policy(rules=[rule]))(torch.eye(16)).T
    assert density(seen) == 0.5
    assert (blocks_kept(seen, 4, 1) == 2).all()
    kept = seen != 0
    torch.testing.assert_close(seen[kept], layer.weight[kept])
