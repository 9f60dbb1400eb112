"""The eager baseline computes what it claims to."""

from __future__ import annotations

import pytest
import torch

from benchmarks import eager_hooks
from nmcompile.functional import keep_mask, prune


@pytest.mark.parametrize("select", [eager_hooks.mse_topk, eager_hooks.mse_compare])
def test_eager_mse_is_the_mask_of_the_library(select):
    x = torch.randn(6, 5, 16)
    assert torch.equal(select(x), x * keep_mask(x, "2:4"))


def test_eager_comparisons_break_ties_to_the_lower_index():
    x = torch.tensor([[1.0, 1, 1, 1], [0, 2, -2, 2], [3, 1, 1, 1], [0, 0, 0, 0]])
    assert torch.equal(eager_hooks.mse_compare(x), prune(x))


def test_eager_mvue_keeps_at_most_two_and_is_unbiased():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    x[0] = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1])
    draws = torch.stack([eager_hooks.mvue(x) for _ in range(4000)]).double()
    assert (draws.view(-1, 4) != 0).sum(1).max() == 2
    assert torch.equal(draws[:, 0], x[0].double().expand(4000, 8))
    error = (draws.mean(0) - x).abs()
    assert (error <= 5 * draws.std(0) / 4000**0.5 + 1e-6).all()


def test_eager_layers_have_dense_gradients_of_the_bias_alone():
    torch.manual_seed(0)
    model = eager_hooks.use_eager_masks(torch.nn.Linear(8, 4))
    x = torch.randn(12, 8, requires_grad=True)
    y = model(x)
    assert torch.equal(y, torch.nn.functional.linear(prune(x), model.weight, model.bias))
    dy = torch.randn_like(y)
    y.backward(dy)
    assert torch.allclose(model.bias.grad, dy.sum(0))
    assert not torch.allclose(model.weight.grad, dy.t() @ x.detach())
    assert not torch.allclose(x.grad, dy @ model.weight.detach())
