"""Autocast to 16 bits, and a gradient scaler that must see every overflow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nmcompile import Policy, Rule
from nmcompile.masks import reference
from tests.setups.steps import MSE, compiled, density, identity, mlp

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def autocast_step(model: nn.Module, x: Tensor, dtype: torch.dtype, policy: Any) -> list[Tensor]:
    torch._dynamo.reset()
    model = copy.deepcopy(model)
    run = compiled(model, policy)
    with torch.autocast("cpu", dtype):
        loss = run(x).float().square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.slow
@HALVES
def test_dense_under_autocast_is_inductor(dtype: torch.dtype) -> None:
    model, x = mlp(dtype=torch.float32), torch.randn(8, 16)
    ours, inductor = (autocast_step(model, x, dtype, p) for p in ("dense", None))
    assert all(torch.equal(a, b) for a, b in zip(ours, inductor, strict=True))
    pruned = autocast_step(model, x, dtype, "full")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in pruned)
    assert not any(torch.equal(a, b) for a, b in zip(pruned, inductor, strict=True))


@HALVES
def test_autocast_prunes_the_operand_in_16_bits(dtype: torch.dtype) -> None:
    layer, x = identity(), torch.randn(8, 16, requires_grad=True)
    dy = torch.randn(8, 16).to(dtype)
    with torch.autocast("cpu", dtype):
        y = compiled(layer, MSE)(x)
    y.backward(dy)
    assert y.dtype == dtype

    def kept(t: Tensor, dim: int) -> Tensor:
        return reference.prune_and_mask(t.to(dtype), None, 0, 2, 4, (dim,), "mse")[0]

    assert torch.equal(y, kept(x.detach(), 1))
    assert torch.equal(x.grad, kept(dy, 1).float())
    dw = kept(dy, 0).T.float() @ x.detach().to(dtype).float()
    torch.testing.assert_close(layer.weight.grad, dw, rtol=2**-7, atol=2**-7)
    assert density(y) == density(x.grad) == 0.5


class Overflowing(nn.Module):
    """Finite everywhere but in one element of the gradient between the two layers.

    The first weight's gradient, a product with that pruned gradient, is all that can tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = identity(), identity()
        with torch.no_grad():
            self.second.weight[3, 5] = 3e4  # times a scaled gradient: beyond float16's 65504
        self.second.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dense", "full", MSE], ids=["dense", "mvue", "mse"])
def test_a_scaler_skips_the_step_that_overflowed(policy: Any) -> None:
    model = Overflowing()
    x = torch.zeros(8, 16)
    x[:, 0] = 1.0  # the forward stays small: only channel 5 meets the large weight
    target = torch.zeros(8, 16)
    target[2, 3] = 1.0  # the loss reads one element
    run = compiled(model, policy)
    optimizer = torch.optim.SGD(model.first.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=100)
    before, seen = model.first.weight.detach().clone(), []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = (run(x) * target).sum()
        assert loss.isfinite()
        scaler.scale(loss).backward()
        seen.append(bool(model.first.weight.grad.isfinite().all()))
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.first.weight, before) is not seen[-1]
        if seen[-1]:
            break
    # 16, 8 and 4 times 3e4 overflow; so the scale was halved at every skipped step.
    assert seen == [False, False, False]
    assert scaler.get_scale() == 2.0
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = (run(x) * target).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert model.first.weight.grad.isfinite().all()
    assert not torch.equal(model.first.weight, before)


@pytest.mark.parametrize("method", ["mvue", "mse"])
@pytest.mark.parametrize("role", ["dgrad", "wgrad"])
def test_one_overflow_in_a_pruned_gradient_reaches_the_result(role: str, method: str) -> None:
    layer, x = identity(dtype=torch.float16), torch.randn(8, 16).half().requires_grad_()
    dy = torch.randn(8, 16).half()
    dy[6, 9] = -torch.inf
    policy = Policy(rules=[Rule(role=role, prune="gradient", format="2:4", method=method)])
    compiled(layer, policy)(x).backward(dy)
    found = x.grad[6] if role == "dgrad" else layer.weight.grad[9]
    assert not found.isfinite().all()
    other = x.grad[:6] if role == "dgrad" else layer.weight.grad[:9]
    assert other.isfinite().all(), "an overflow must stay in its own block's results"
