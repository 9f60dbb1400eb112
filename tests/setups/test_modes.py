"""Training, evaluation, no-grad and inference mode: each has its own graphs, none is stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import nmcompile
from tests.end_to_end.eager_oracle import Oracle
from tests.setups.steps import (
    MASKS,
    MSE,
    assert_close,
    assert_equal,
    compiled,
    density,
    eager_step,
    identity,
    mlp,
    one_step,
    prunes_run,
)


def normalised() -> nn.Module:
    """Its batch norm computes another function in training than in evaluation."""
    first, last = mlp()[0], mlp()[2]
    return nn.Sequential(first, nn.BatchNorm1d(32, dtype=torch.float64), nn.Tanh(), last)


def forward_of(model: nn.Module, x: Tensor) -> Tensor:
    """The forward as the independent simulation computes it; running statistics stay."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    with Oracle(MASKS), torch.no_grad():
        y = model(x)
    for buffer, value in buffers:
        buffer.copy_(value)
    return y


@pytest.mark.slow
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_forward_is_pruned_alone(context: Any) -> None:
    layer, x = identity(), torch.randn(8, 16)
    outputs = {}
    for policy in ("full", "dense", None):
        torch._dynamo.reset()
        run = compiled(layer, policy)
        with context():
            outputs[policy] = run(x)
    assert density(outputs["full"]) == 0.5
    assert torch.equal(outputs["dense"], outputs[None])
    assert outputs["full"].is_inference() is (context is torch.inference_mode)


@pytest.mark.slow
def test_switching_to_evaluation_and_back() -> None:
    model, x = normalised(), torch.randn(8, 16, dtype=torch.float64)
    run = compiled(model, MSE)
    counters.clear()
    for _ in range(2):
        model.train()
        expected = eager_step(model, x)
        assert_close(one_step(run, model, x), expected)
        model.eval()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                assert_close([run(x)], [forward_of(model, x)])
        assert_close(one_step(run, model, x), eager_step(model, x))  # gradients in evaluation
    report = nmcompile.last_report()
    assert counters["stats"]["unique_graphs"] == len(report.graphs) == 4
    assert [g.training for g in report.graphs] == [True, False, False, True]


@pytest.mark.slow
def test_gradients_of_the_input_alone() -> None:
    layer = identity().requires_grad_(False)
    x, dy = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    run = compiled(layer, "full")
    run(x).backward(dy)
    assert density(x.grad) <= 0.5
    assert run(x.detach()).requires_grad is False
    assert [len(g.sites) for g in nmcompile.last_report().graphs] == [2, 1]


@pytest.mark.slow
def test_fallback_random_keeps_the_masks_and_reproduces() -> None:
    """With eager's generator in place of Inductor's, dropout included."""
    model = nn.Sequential(mlp(), nn.Dropout(0.5), mlp())
    x = torch.randn(8, 16, dtype=torch.float64)
    results: dict[Any, list[list[Tensor]]] = {}
    with torch._inductor.config.patch(fallback_random=True):
        for policy in ("full", "dense", None):
            torch._dynamo.reset()
            run = compiled(model, policy)
            for seed in (3, 3, 4):
                torch.manual_seed(seed)
                results.setdefault(policy, []).append(one_step(run, model, x))
            masks = prunes_run(lambda: one_step(run, model, x))  # noqa: B023
            assert masks == (11 if policy == "full" else 0)  # 4 products, no dgrad in the first
    for first, again, other in results.values():
        assert_equal(first, again)
        assert not torch.equal(first[1], other[1])
    assert_equal(results["dense"][0], results[None][0])
    torch.manual_seed(3)
    assert_close(one_step(model, model, x), results[None][0])  # eager's random numbers
