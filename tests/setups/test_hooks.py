"""Hooks see and change the pruned gradients; none makes a product dense without a word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from tests.setups.steps import MSE, assert_close, compiled, eager_step, loss_of, one_step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32, dtype=torch.float64)
        self.last = nn.Linear(32, 16, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def rows() -> Tensor:
    return torch.randn(8, 16, dtype=torch.float64)


def tripled(module: nn.Module, grads_in: tuple[Tensor, ...], grads_out: object) -> tuple[Tensor]:
    return (3 * grads_in[0],)


@pytest.mark.slow
def test_hooks_on_parameters_and_on_the_forward() -> None:
    model, x, seen = Net(), rows(), []
    model.first.register_forward_hook(lambda module, args, y: 2 * y)
    for p in model.parameters():
        p.register_hook(lambda g: 2 * g)
        p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm()))
    expected = eager_step(model, x)
    expected_norms, seen[:] = seen[:], []
    assert_close(one_step(compiled(model, MSE), model, x), expected)
    assert_close(sorted(seen), sorted(expected_norms))  # the order of parameters is free


@pytest.mark.slow
def test_a_backward_hook_of_a_module_leaves_it_uncompiled_and_the_report_says_so() -> None:
    model, x = Net(), rows()
    model.last.register_full_backward_hook(tripled)
    one_step(compiled(model, MSE), model, x)
    report = nmcompile.last_report()
    assert {s.module for s in report.sites} == {"first"}
    assert report.uncompiled == ("last",)


@pytest.mark.slow
def test_a_backward_hook_of_a_module_under_compiled_autograd() -> None:
    model, x = Net(), rows()
    model.last.register_full_backward_hook(tripled)
    expected = eager_step(model, x)
    model.zero_grad()

    def step(x: Tensor) -> Tensor:
        loss = loss_of(model(x))
        loss.backward()
        return loss.detach()

    with torch._dynamo.config.patch(compiled_autograd=True):
        loss = compiled(step, MSE)(x)
    assert_close([loss, *(p.grad for p in model.parameters())], expected)
    assert {s.module for s in nmcompile.last_report().sites} == {"first", "last"}
