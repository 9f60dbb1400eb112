"""Functions that take derivatives themselves: what Dynamo sees is then one graph without roles.

A gradient in it must not be pruned as if it were an activation: such a graph stays dense, loudly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jvp, vjp

import nmcompile
from nmcompile import NMWarning
from tests.setups.steps import MSE, assert_close, compiled, eager_step, loss_of, mlp

Tensors = Mapping[str, Tensor]
#: Parameters as such, so that their products have a weight and rules for "fprop" would match.
Step = Callable[[nn.Module, Tensors, Tensor], list[Tensor]]


def by_grad(model: nn.Module, params: Tensors, x: Tensor) -> list[Tensor]:
    grads, loss = grad_and_value(lambda p: loss_of(functional_call(model, p, (x,))))(params)
    return [loss, *grads.values()]


def by_vjp(model: nn.Module, params: Tensors, x: Tensor) -> list[Tensor]:
    loss, pull = vjp(lambda p: loss_of(functional_call(model, p, (x,))), params)
    return [loss, *pull(torch.ones_like(loss))[0].values()]


def by_jvp(model: nn.Module, params: Tensors, x: Tensor) -> list[Tensor]:
    return list(jvp(lambda x: functional_call(model, params, (x,)), (x,), (x,)))


@pytest.mark.slow
@pytest.mark.parametrize("step", [by_grad, by_vjp, by_jvp])
def test_torch_func_stays_dense_with_a_warning(step: Step) -> None:
    model, x = mlp(), torch.randn(8, 16, dtype=torch.float64)
    params = dict(model.named_parameters())
    with torch.no_grad():
        expected = step(model, params, x)
        with pytest.warns(NMWarning, match="takes derivatives itself"):
            found = compiled(lambda p, x: step(model, p, x), MSE)(params, x)
        assert_close(found, expected)
        assert_close(compiled(lambda p, x: step(model, p, x), "dense")(params, x), expected)
    assert nmcompile.last_report().totals.pruned_sites == 0


@pytest.mark.slow
def test_a_traced_backward_stays_dense_with_a_warning() -> None:
    model, x = mlp(), torch.randn(8, 16, dtype=torch.float64)
    expected = eager_step(model, x, masks={})
    model.zero_grad()

    def step(x: Tensor) -> Tensor:
        loss = loss_of(model(x))
        loss.backward()
        return loss.detach()

    with (
        torch._dynamo.config.patch(trace_autograd_ops=True),
        pytest.warns(NMWarning, match="takes derivatives itself"),
    ):
        loss = compiled(step, MSE, fullgraph=True)(x)
    assert_close([loss, *(p.grad for p in model.parameters())], expected)


@pytest.mark.slow
def test_a_compiled_training_step_is_pruned() -> None:
    """The usual case: Dynamo breaks the graph at ``backward()``; the optimizer follows."""
    model, x = mlp(), torch.randn(8, 16, dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    loss, *grads = eager_step(model, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        optimizer.step()
        return loss.detach()

    found: Any = compiled(step, MSE)(x)
    after = [p - 0.1 * g for p, g in zip(before, grads, strict=True)]
    assert_close([found, *(p.detach() for p in model.parameters())], [loss, *after])
    assert nmcompile.last_report().totals.pruned_share == 1.0
