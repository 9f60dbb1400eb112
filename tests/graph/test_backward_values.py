"""What is computed for the backward alone may be a gradient, though it depends on no tangent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile.reason import Code

W = nn.Parameter(torch.randn(8, 16))


def outcome(f: Any, *args: Tensor) -> list[tuple[tuple[str, ...], str | None]]:
    """The operand kinds of each product, and what is pruned of it."""
    report = nmcompile.explain(f, *args)
    assert all(s.pruned is None for s in report.sites if s.guess)
    return [(tuple(map(str, s.operands)), s.pruned and str(s.pruned)) for s in report.sites]


class FusedLoss(torch.autograd.Function):
    """Computes the gradient of its logits in the forward, and returns a part of it as a metric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, metric: bool) -> tuple[Tensor, Tensor]:
        logits = x @ w.t()
        d = logits.softmax(-1) - 1 / 8
        ctx.save_for_backward(d @ w, d.t() @ x)
        seen = d.norm() if metric else logits.new_zeros(())
        ctx.mark_non_differentiable(seen)
        return logits.logsumexp(-1).sum() - logits.sum() / 8, seen

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, dw = ctx.saved_tensors
        return g * dx, g * dw, None


class Forgetful(torch.autograd.Function):
    """Does not say that nothing is differentiated through its metric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ w.t()
        d = logits.softmax(-1) - 1 / 8
        ctx.save_for_backward(d @ w, d.t() @ x)
        return logits.logsumexp(-1).sum() - logits.sum() / 8, d.norm()

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        dx, dw = ctx.saved_tensors
        return g * dx, g * dw


@pytest.mark.parametrize("metric", [False, True, "differentiable"])
def test_a_gradient_that_a_forward_computes_is_no_activation(metric: bool | str) -> None:
    """Its backward only scales what was computed, so that its roles are known, too."""
    x = torch.randn(12, 16, requires_grad=True)

    def loss(x: Tensor) -> Any:
        forgets = metric == "differentiable"
        return Forgetful.apply(x, W) if forgets else FusedLoss.apply(x, W, metric)

    assert outcome(loss, x) == [
        (("activation", "weight"), "activation"),
        (("gradient", "weight"), "gradient"),
        (("gradient", "activation"), "gradient"),
    ]


class Chunked(FusedLoss):
    """As fused losses of large vocabularies do: a few rows at a time, written in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        dx, dw, loss = torch.empty_like(x), torch.zeros_like(w), x.new_zeros(())
        for start in (0, 8):
            rows = x[start : start + 8]
            logits = rows @ w.t()
            loss = loss + logits.logsumexp(-1).sum() - logits.sum() / 8
            d = logits.softmax(-1) - 1 / 8
            dx[start : start + 8] = d @ w
            dw = torch.addmm(dw, d.t(), rows)
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        dx, dw = ctx.saved_tensors
        return dx * g, dw * g


@pytest.mark.parametrize("policy", ["full", "full-exact"])
def test_a_loss_in_chunks_behind_a_model(policy: str) -> None:
    body, x = nn.Linear(16, 16), torch.randn(16, 16)
    report = nmcompile.explain(lambda x: Chunked.apply(body(x).tanh(), W), x, policy=policy)
    roles = [str(s.role) for s in report.sites]
    assert roles == ["fprop", *["fprop", "dgrad", "wgrad"] * 2, "wgrad"]
    assert report.totals.pruned_share == 1.0
    exact = [s for s in report.sites if s.has(Code.READS_PRUNED)]
    assert len(exact) == (3 if policy == "full-exact" else 0)


def test_what_a_gradient_is_multiplied_with_may_be_anything() -> None:
    """Behind a nonlinearity nothing says what a product's operand was."""

    class Squared(FusedLoss):
        @staticmethod
        def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
            dx, dw = ctx.saved_tensors
            return g * dx.square(), g * dw.tanh(), None

    x = torch.randn(12, 16, requires_grad=True)
    with pytest.warns(nmcompile.NMWarning, match="computed for the backward"):
        found = outcome(lambda x: Squared.apply(x, W, False), x)
    assert found == [
        (("activation", "weight"), "activation"),
        (("unknown", "weight"), None),
        (("unknown", "activation"), None),
    ]


class Recomputes(torch.autograd.Function):
    """Two layers whose backward computes the values between them once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w2: Tensor, exactly: bool) -> Tensor:
        ctx.save_for_backward(x, w1, w2)
        ctx.exactly = exactly
        return torch.tanh(x @ w1.t()) @ w2.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2 = ctx.saved_tensors
        h = torch.tanh(x @ w1.t() if ctx.exactly else 2 * x @ w1.t() / 2)
        dh = (g @ w2) * (1 - h * h)
        return dh @ w1, dh.t() @ x, g.t() @ h, None


@pytest.mark.parametrize("exactly", [True, False])
def test_what_a_backward_computes_once_more_is_what_it_was(exactly: bool) -> None:
    x, w = torch.randn(12, 16, requires_grad=True), nn.Parameter(torch.randn(4, 8))
    run = lambda x: Recomputes.apply(x, W, w, exactly)  # noqa: E731
    if exactly:
        found = outcome(run, x)
        assert (("gradient", "activation"), "gradient") in found
        assert all(pruned for _, pruned in found)
        return
    with pytest.warns(nmcompile.NMWarning, match="computed for the backward"):
        found = outcome(run, x)
    # The product that is computed in another way is dense; the weight gradient that reads what
    # follows from it is known by where it goes.
    assert [pruned for kinds, pruned in found if kinds == ("unknown", "weight")] == [None]
    assert (("gradient", "unknown"), "gradient") in found
    assert len(found) == 7


def test_views_of_the_forward_are_no_values_of_the_backward() -> None:
    layer, x = nn.Linear(16, 8), torch.randn(3, 4, 16, requires_grad=True)
    report = nmcompile.explain(lambda x: layer(x).cos(), x)
    assert [str(s.role) for s in report.sites] == ["fprop", "dgrad", "wgrad"]
    assert not any(s.guess for s in report.sites)
    assert report.totals.pruned_share == 1.0


def test_a_product_of_a_metric_is_of_the_forward() -> None:
    """It belongs to no gradient, whatever it is computed for."""
    layer, probe = nn.Linear(16, 8), nn.Linear(8, 4)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        h = layer(x)
        return h.square().sum(), probe(h.detach()).argmax(-1)

    report = nmcompile.explain(step, torch.randn(12, 16))
    assert [str(s.pruned) for s in report.sites if s.sizes[2] == "4"] == ["activation"]


def test_a_step_traced_by_hand() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        loss, _ = FusedLoss.apply(x, w, False)
        return loss, torch.autograd.grad(loss, w)[0]

    leaves = torch.randn(12, 16), W.detach().requires_grad_()
    gm = make_fx(step)(*leaves)
    with pytest.warns(nmcompile.NMWarning, match="computed for the backward"):
        report = nmcompile.rewrite(gm, weights="w_1").meta["nm_report"]
    guesses = [s.guess and s.guess.code for s in report.sites]
    # Which of the results is a weight's gradient, such a graph does not say.
    assert guesses == [None, None, Code.BACKWARD_VALUE]
