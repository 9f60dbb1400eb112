"""A whole training step traced by hand: ``nmcompile.rewrite`` of what ``make_fx`` recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from tests.setups.steps import MSE, assert_close, assert_equal, eager_step, loss_of, mlp, roles

Tensors = dict[str, Tensor]


def parameters(model: nn.Module) -> Tensors:
    return {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}


def by_autograd(model: nn.Module, params: Tensors, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    loss = loss_of(functional_call(model, params, (x,)))
    return loss, list(torch.autograd.grad(loss, list(params.values())))


def by_func_grad(model: nn.Module, params: Tensors, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    grads, loss = grad_and_value(lambda p: loss_of(functional_call(model, p, (x,))))(params)
    return loss, list(grads.values())


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("gradients", [by_autograd, by_func_grad])
def test_a_step_with_its_optimizer(tracing: str, gradients: Any) -> None:
    """Adam's update is in the graph as well; it must neither be pruned nor taken for a product."""
    model, x = mlp(), torch.randn(8, 16, dtype=torch.float64)
    adam = torch.optim.Adam

    def step(params: Tensors, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, grads = gradients(model, params, x)
        leaves = [p.detach().clone().requires_grad_() for p in params.values()]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g.detach()
        adam(leaves, 0.1, foreach=False).step()
        return loss.detach(), [p.detach() for p in leaves]

    params = parameters(model)
    traced = make_fx(step, tracing_mode=tracing)(params, x)
    rewritten = nmcompile.rewrite(traced, MSE)
    report = rewritten.meta["nm_report"]
    assert sorted((role, pruned) for _, role, pruned in roles(report.sites)) == [
        ("dgrad", "gradient"),
        *[("fprop", "activation")] * 2,
        *[("wgrad", "gradient")] * 2,
    ]
    loss, found = rewritten(params, x)
    expected_loss, *grads = eager_step(model, x)
    leaves = list(parameters(model).values())
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = g
    adam(leaves, 0.1, foreach=False).step()
    assert_close([loss, *found], [expected_loss, *(p.detach() for p in leaves)])
    dense = nmcompile.rewrite(traced, "dense")(params, x)
    assert_equal([dense[0], *dense[1]], [(r := step(params, x))[0], *r[1]])


class PointwiseConv(nn.Module):
    """Features of tokens, [B, T, 4], through a convolution over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def test_strides_are_those_that_the_kernels_gave() -> None:
    # A fake layer norm gives its gradient the strides of the incoming one, the kernel row by row;
    # the view that leads to the linear layer's weight gradient is possible of the latter alone.
    norms = [nn.LayerNorm(4), nn.LayerNorm(4)]
    model = nn.Sequential(nn.Linear(8, 4, bias=False), *norms, PointwiseConv()).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    traced = make_fx(lambda p, x: by_autograd(model, p, x))(parameters(model), x)
    rewritten = nmcompile.rewrite(traced, MSE, weights="p_*")
    loss, grads = rewritten(parameters(model), x)
    assert_close([loss, *grads], eager_step(model, x))
    for node in rewritten.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor):
            assert (
                node.meta["val"].fake_mode
                is next(iter(rewritten.graph.nodes)).meta["val"].fake_mode
            )
