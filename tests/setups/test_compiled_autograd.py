"""Compiled autograd captures the backward of a step once more: its products are pruned once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import nmcompile
from nmcompile import Policy, Rule
from tests.end_to_end.eager_oracle import Masks
from tests.setups.steps import (
    MASKS,
    MSE,
    RULES,
    assert_close,
    compiled,
    eager_step,
    loss_of,
    mlp,
    prunes_run,
)

#: Also for products of two activations, which those of a captured backward seem to be.
ALL_PRODUCTS = Policy(rules=[*RULES, Rule(op="matmul", prune="activation", format="1:4")])


@pytest.fixture(autouse=True)
def compiled_autograd() -> Iterator[None]:
    with torch._dynamo.config.patch(compiled_autograd=True):
        counters.clear()
        yield
    assert counters["compiled_autograd"]["captures"] > 0


def train_step(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        loss = forward(x)
        loss.backward()
        return loss

    return step


def results(model: nn.Module, step: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    model.zero_grad()
    return [step(x).detach(), *(p.grad.clone() for p in model.parameters())]


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 1)).double()


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, convolutions])
def test_the_backward_is_pruned_once(make: Any) -> None:
    model = make()
    x = torch.randn(*((8, 16) if make is mlp else (2, 8, 5, 5)), dtype=torch.float64)
    run = compiled(train_step(lambda x: loss_of(model(x))), ALL_PRODUCTS)
    expected = eager_step(model, x)
    for _ in range(2):
        assert_close(results(model, run, x), expected)
    model.zero_grad()
    assert prunes_run(lambda: run(x)) == 5  # a layer's three products; no dgrad in the first
    report = nmcompile.last_report()
    assert [len(g.sites) for g in report.graphs] == [5]
    assert report.totals.pruned_share == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "masks"), [(MSE, MASKS), ("dense", {})])
def test_what_ran_eagerly_stays_dense(policy: Any, masks: Masks) -> None:
    """One layer runs eagerly, one compiled: the captured backward holds both."""
    model = mlp()
    eager, inner = torch._dynamo.disable(model[0]), model[1:]

    def step(x: Tensor) -> Tensor:
        h = eager(x)
        loss = loss_of(inner(h))
        loss.backward()
        return loss

    x = torch.randn(8, 16, dtype=torch.float64)
    first = model[0](x).detach().requires_grad_()
    expected = eager_step(inner, first, masks=masks)
    found = results(model, compiled(step, policy), x)
    assert_close([found[0], *found[3:]], expected)
    dx = first.grad  # of the pruned second layer; the first adds its own dense weight gradient
    assert_close(found[1:3], [dx.T @ x, dx.sum(0)])
