"""A product with the identity returns the pruned operand itself, through the real backend.

Forward:  y = x I^T shows prune(x). Backward: dx = dy I shows prune(dy) along the features; and
dW = dy^T X with X = I shows prune(dy^T) along the tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.masks import reference


def compiled(model: nn.Module, policy: Any) -> Any:
    return torch.compile(model, backend="nm_sparse", options={"policy": policy})


def keep_mask(x: torch.Tensor, nm: nmcompile.NMFormat, dims: tuple[int, ...]) -> torch.Tensor:
    """The oracle's mask: the N largest of each block."""
    return reference.prune_and_mask(x, None, 0, nm.n, nm.m, dims, "mse")[1]


def one_rule(**keys: Any) -> Policy:
    return Policy(rules=[Rule(**keys)])


def identity_linear(width: int) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
    return layer


def blocks_kept(x: torch.Tensor, m: int, dim: int) -> torch.Tensor:
    """Non-zeros of each block along ``dim``."""
    rows = x.movedim(dim, -1).flatten(0, -2)
    rows = nn.functional.pad(rows, (0, -rows.shape[1] % m))
    return (rows.unflatten(1, (-1, m)) != 0).sum(-1)


@pytest.mark.parametrize("fmt", ["1:2", "2:4", "4:8"])
def test_fprop_of_a_linear_layer(fmt: str) -> None:
    n, m = map(int, fmt.split(":"))
    layer, x = identity_linear(16), torch.randn(3, 5, 16)
    y = compiled(layer, one_rule(prune="activation", role="fprop", format=fmt))(x)
    assert (blocks_kept(y, m, -1) == n).all()
    mask = keep_mask(x, nmcompile.NMFormat(n, m), (-1,))
    torch.testing.assert_close(y, torch.where(mask, x, 0.0), rtol=0, atol=0)


def test_dgrad_of_a_linear_layer() -> None:
    layer, x = identity_linear(16), torch.randn(8, 16, requires_grad=True)
    dy = torch.randn(8, 16)
    compiled(layer, one_rule(prune="gradient", role="dgrad", format="2:4", method="mse"))(
        x
    ).backward(dy)
    mask = keep_mask(dy, nmcompile.NMFormat(2, 4), (-1,))
    torch.testing.assert_close(x.grad, torch.where(mask, dy, 0.0), rtol=0, atol=0)
    # The weight's own gradient saw the dense dy.
    torch.testing.assert_close(layer.weight.grad, dy.T @ x.detach())


def test_wgrad_of_a_linear_layer() -> None:
    layer, x = nn.Linear(16, 8, bias=True), torch.eye(16)
    dy = torch.randn(16, 8)
    policy = one_rule(prune="gradient", role="wgrad", format="1:2", method="mse")
    compiled(layer, policy)(x).backward(dy)
    mask = keep_mask(dy, nmcompile.NMFormat(1, 2), (0,))
    torch.testing.assert_close(layer.weight.grad, torch.where(mask, dy, 0.0).T, rtol=0, atol=0)
    torch.testing.assert_close(layer.bias.grad, dy.sum(0))  # of the dense dy


def test_wgrad_can_prune_the_activation_instead() -> None:
    layer, x = nn.Linear(8, 16, bias=False), torch.randn(16, 8)
    policy = one_rule(prune="activation", role="wgrad", format="2:4")
    compiled(layer, policy)(x).backward(torch.eye(16))
    mask = keep_mask(x, nmcompile.NMFormat(2, 4), (0,))
    torch.testing.assert_close(layer.weight.grad, torch.where(mask, x, 0.0), rtol=0, atol=0)


@pytest.mark.parametrize("role", ["dgrad", "wgrad"])
def test_mvue_is_unbiased_through_the_backend(role: str) -> None:
    layer = identity_linear(8) if role == "dgrad" else nn.Linear(8, 8, bias=False)
    x, dy = torch.eye(8, requires_grad=True), torch.randn(8, 8)
    model = compiled(layer, one_rule(prune="gradient", role=role, format="2:4", method="mvue"))
    total, steps = torch.zeros(8, 8, dtype=torch.float64), 400
    dim = 1 if role == "dgrad" else 0
    for _ in range(steps):
        x.grad = layer.weight.grad = None
        model(x).backward(dy)
        sample = x.grad if role == "dgrad" else layer.weight.grad.T
        assert (blocks_kept(sample, 4, dim) <= 2).all()
        total += sample.double()
    # A kept value is dy / p, so the variance of one draw is dy^2 (1/p - 1).
    p = nmcompile.functional.inclusion_probability(dy, "2:4", dim)
    error = (dy**2 * (1 / p - 1) / steps).sqrt()
    assert ((total / steps - dy).abs() <= 5 * error + 1e-6).all()


def identity_conv(channels: int, groups: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1, bias=False, groups=groups)
    with torch.no_grad():
        eye = torch.eye(channels // groups).repeat(groups, 1)
        conv.weight.copy_(eye[:, :, None, None])
    return conv


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fprop_and_dgrad_of_a_convolution(groups: int, layout: torch.memory_format) -> None:
    # 24/4 = 6 channels a group: the last block of each group is padded, none straddles groups.
    conv = identity_conv(24, groups).to(memory_format=layout)
    x = torch.randn(2, 24, 3, 5).to(memory_format=layout).requires_grad_()
    dy = torch.randn(2, 24, 3, 5).to(memory_format=layout)
    policy = Policy(
        rules=[
            Rule(prune="activation", role="fprop", format="2:4"),
            Rule(prune="gradient", role="dgrad", format="2:4", method="mse"),
        ]
    )
    y = compiled(conv, policy)(x)
    y.backward(dy)

    def expected(t: torch.Tensor) -> torch.Tensor:
        grouped = t.detach().unflatten(1, (groups, -1))
        mask = keep_mask(grouped, nmcompile.NMFormat(2, 4), (2,)).flatten(1, 2)
        return torch.where(mask, t.detach(), 0.0)

    torch.testing.assert_close(y, expected(x), rtol=0, atol=0)
    torch.testing.assert_close(x.grad, expected(dy), rtol=0, atol=0)


def test_wgrad_of_a_convolution_runs_along_batch_and_pixels() -> None:
    # One input channel that is a different unit vector of (batch, pixel) in each of 30 channels
    # returns every element of the pruned dy; 15 pixels: blocks straddle the two images.
    conv = nn.Conv2d(30, 4, 1, bias=False)
    x = torch.eye(30).reshape(30, 2, 3, 5).permute(1, 0, 2, 3).contiguous()
    dy = torch.randn(2, 4, 3, 5)
    compiled(conv, one_rule(prune="gradient", role="wgrad", format="2:4", method="mse"))(
        x
    ).backward(dy)
    flat = dy.permute(1, 0, 2, 3).reshape(4, 30)
    mask = keep_mask(flat, nmcompile.NMFormat(2, 4), (1,))
    torch.testing.assert_close(
        conv.weight.grad[:, :, 0, 0], torch.where(mask, flat, 0.0), rtol=0, atol=0
    )


def test_transposable_weight_masks_agree_in_fprop_and_dgrad() -> None:
    layer = nn.Linear(16, 16, bias=False)
    x = torch.eye(16, requires_grad=True)
    y = compiled(layer, "weights")(x)
    y.backward(torch.eye(16))
    weight = y.detach().T  # y = I W^T
    torch.testing.assert_close(x.grad, weight)  # dx = I W
    assert (blocks_kept(weight, 4, 0) == 2).all()
    assert (blocks_kept(weight, 4, 1) == 2).all()


class TestExactBackward:
    """``backward = "exact"`` is the true gradient of the pruned product."""

    @pytest.mark.parametrize("kind", ["activation", "weight"])
    @pytest.mark.parametrize("shape", ["linear", "conv"])
    def test_equals_autograd_of_the_pruned_product(self, kind: str, shape: str) -> None:
        model = nn.Linear(16, 12) if shape == "linear" else nn.Conv2d(16, 12, 3, padding=1)
        x = torch.randn(*((6, 16) if shape == "linear" else (2, 16, 5, 5)), requires_grad=True)
        rule = Rule(prune=kind, role="fprop", format="2:4", backward="exact")
        y = compiled(model, Policy(rules=[rule]))(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        got = (y.detach(), x.grad, model.weight.grad, model.bias.grad)

        x2 = x.detach().clone().requires_grad_()
        w2 = model.weight.detach().clone().requires_grad_()
        b2 = model.bias.detach().clone().requires_grad_()
        nm = nmcompile.NMFormat(2, 4)
        dim = (1,)
        px = x2 * keep_mask(x2.detach(), nm, dim) if kind == "activation" else x2
        pw = w2 * keep_mask(w2.detach(), nm, dim) if kind == "weight" else w2
        conv = nn.functional.conv2d
        y2 = nn.functional.linear(px, pw, b2) if shape == "linear" else conv(px, pw, b2, padding=1)
        y2.backward(dy)
        for a, b in zip(got, (y2.detach(), x2.grad, w2.grad, b2.grad), strict=True):
            torch.testing.assert_close(a, b)

    def test_straight_through_is_the_default(self) -> None:
        layer, x = identity_linear(8), torch.randn(4, 8, requires_grad=True)
        dy = torch.randn(4, 8)
        compiled(layer, "activations")(x).backward(dy)
        torch.testing.assert_close(x.grad, dy)
        torch.testing.assert_close(layer.weight.grad, dy.T @ x.detach())


def test_transposable_masks_agree_where_every_score_is_equal() -> None:
    # All magnitudes equal, so every pattern ties; fprop sees the transposed view of the weight.
    layer = nn.Linear(8, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(16, 8).sign())
    x = torch.eye(8, requires_grad=True)
    y = compiled(layer, "weights")(x)
    y.backward(torch.eye(16)[:8])
    torch.testing.assert_close(x.grad, y.detach().T[:8])
