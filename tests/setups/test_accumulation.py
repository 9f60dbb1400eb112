"""Several backward passes into one gradient, and clipping of what they left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import nmcompile
from nmcompile import Policy, Rule
from tests.setups.steps import (
    MASKS,
    MSE,
    assert_close,
    assert_equal,
    compiled,
    eager_step,
    loss_of,
    mlp,
)


def accumulated(model: nn.Module, policy: Any, batches: list[Tensor]) -> list[Tensor]:
    torch._dynamo.reset()
    model = copy.deepcopy(model)
    run = compiled(model, policy)
    for x in batches:
        loss_of(run(x)).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.slow
def test_micro_batches_add_up() -> None:
    model, batches = mlp(), [torch.randn(8, 16, dtype=torch.float64) for _ in range(3)]
    assert_equal(*(accumulated(model, p, batches) for p in ("dense", None)))
    each = [eager_step(model, x)[1:] for x in batches]
    expected = [sum(grads) for grads in zip(*each, strict=True)]
    assert_close(accumulated(model, MSE, batches), expected)


def test_micro_batches_draw_their_own_masks_and_their_mean_is_unbiased() -> None:
    layer, dy = nn.Linear(16, 8, bias=False), torch.randn(16, 8)
    rule = Rule(role="wgrad", prune="gradient", format="2:4")
    run, eye = compiled(layer, Policy(rules=[rule])), torch.eye(16)  # so that dW = prune(dy^T)
    counters.clear()
    run(eye).backward(dy)
    first = layer.weight.grad.clone()
    run(eye).backward(dy)
    assert not torch.equal(layer.weight.grad - first, first)
    steps = 400
    for _ in range(steps - 2):
        run(eye).backward(dy)
    assert counters["stats"]["unique_graphs"] == 1
    # A kept value is dy / p, so the variance of one draw is dy^2 (1/p - 1).
    p = nmcompile.functional.inclusion_probability(dy, "2:4", 0)
    error = (dy**2 * (1 / p - 1) / steps).sqrt()
    assert ((layer.weight.grad.T / steps - dy).abs() <= 5 * error + 1e-5).all()


def test_clipping_sees_the_pruned_gradients() -> None:
    model, x = mlp(), torch.randn(8, 16, dtype=torch.float64)
    norms = {
        masks is MASKS: torch.stack(
            [g.norm() for g in eager_step(model, x, masks=masks)[1:]]
        ).norm()
        for masks in (MASKS, {})
    }
    expected = [g / (norms[True] + 1e-6) for g in eager_step(model, x)[1:]]
    model.zero_grad()
    loss_of(compiled(model, MSE)(x)).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.testing.assert_close(norm, norms[True])
    assert (norm - norms[False]).abs() > 0.01 * norm
    assert_close([p.grad for p in model.parameters()], expected)
