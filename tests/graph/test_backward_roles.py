"""Roles of backward products without Autograd's numbering: a hand-traced training step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.gemm import Gemm
from nmcompile.graph import backward_roles
from nmcompile.reason import Code
from nmcompile.report.report import Report
from tests.graph.training_step import traced


def roles(report: Report) -> list[tuple[str, str, str]]:
    return sorted((str(s.op), str(s.role), str(s.pruned)) for s in report.sites)


MLP_ROLES = [
    ("linear", "dgrad", "gradient"),
    ("linear", "fprop", "activation"),
    ("linear", "fprop", "activation"),
    ("linear", "wgrad", "gradient"),
    ("linear", "wgrad", "gradient"),
]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("weights", [None, "params_*"])
def test_mlp(mode: str, weights: str | None) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    gm, params, step = traced(model, torch.randn(12, 16), mode)
    before = gm.code
    result = nmcompile.rewrite(gm, "full", weights=weights)
    assert gm.code == before, "the given graph must stay as it is"
    assert roles(result.meta["nm_report"]) == MLP_ROLES
    x = torch.randn(12, 16)
    loss, updated = result(params, x)
    dense_loss, dense = step(params, x)
    assert torch.isfinite(loss)
    assert not torch.equal(loss, dense_loss)
    assert [u.shape for u in updated] == [d.shape for d in dense]


def test_convolutions_and_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv1d(4, 8, 3, padding=1), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc(self.conv(x).transpose(1, 2))
            return torch.softmax(h @ h.transpose(1, 2), -1) @ h

    gm, *_ = traced(Net(), torch.randn(2, 4, 12))
    report = nmcompile.rewrite(gm, "full").meta["nm_report"]
    found = roles(report)
    assert found.count(("matmul", "fprop", "None")) == 2
    assert found.count(("matmul", "dgrad", "None")) == 4
    assert ("linear", "wgrad", "gradient") in found
    assert ("linear", "dgrad", "gradient") in found
    assert ("conv", "wgrad", "gradient") in found
    assert not any(s.guess for s in report.sites)


def test_layers_of_the_same_sizes_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    belong_together = backward_roles._belong_together

    def counted(*products: Gemm) -> bool:
        nonlocal compared
        compared += 1
        return belong_together(*products)

    monkeypatch.setattr(backward_roles, "_belong_together", counted)
    layers = [nn.Linear(8, 8) for _ in range(20)]
    gm, *_ = traced(nn.Sequential(*layers), torch.randn(12, 8))
    found = roles(nmcompile.rewrite(gm, "full").meta["nm_report"])
    assert len(found) == 20 * 3 - 1  # the gradient of the input is not asked for
    assert 0 < compared <= 20 * 3  # the sizes of fprop, dgrad and wgrad, each with every layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_outer_product_of_activations_has_no_weight_gradient(dtype: torch.dtype) -> None:
    """Inductor writes it as a multiplication, and its gradient sums up to that of a bias."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 8, dtype=dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc(x) + self.fc(x.tanh())
            return torch.matmul(h.mT, h)

    report = nmcompile.explain(Square(), torch.randn(2, 1, 1, dtype=dtype), policy="full")
    found = [(s.op, s.role, s.pruned) for s in report.sites if s.target == "aten.bmm"]
    assert found == [("matmul", "dgrad", None)] * 2


class Shared(nn.Module):
    """One layer, called twice: its weight is read by two products of the same sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.fc(x.tanh()).tanh())


EXACT = Policy(rules=[Rule(prune="activation", role="fprop", format="2:4", backward="exact")])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_shared_weight_has_a_gradient_for_each_call(frozen: bool) -> None:
    """The mask on an input gradient is that of the call's own activation, or there is none."""
    model, x = Shared().double(), torch.randn(16, 16, dtype=torch.float64, requires_grad=True)
    model.requires_grad_(not frozen)
    w, prune = model.fc.weight, nmcompile.functional.prune

    def step(w: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = functional_call(model, {"fc.weight": w}, (x,))
        return torch.autograd.grad(y.square().sum(), [x] if frozen else [x, w])

    rewritten = nmcompile.rewrite(make_fx(step)(w, x), EXACT, weights="w_*")
    first = x.tanh()
    second = F.linear(prune(first), w).tanh()
    dy = 2 * F.linear(prune(second), w)
    masks = [1, 1] if frozen else [prune(v) != 0 for v in (first, second)]
    dh = (dy @ w) * masks[1] * (1 - second**2)
    expected = [
        (dh @ w) * masks[0] * (1 - first**2),
        dh.t() @ prune(first) + dy.t() @ prune(second),
    ]
    torch.testing.assert_close(list(rewritten(w, x)), expected[:1] if frozen else expected)


def test_each_of_the_layers_that_read_one_activation_has_its_own_gradient() -> None:
    """Of q, k and v, v alone reads it pruned; sizes and activation are the same."""
    x = torch.randn(16, 16, dtype=torch.float64)
    params = [torch.randn(16, 16, dtype=torch.float64, requires_grad=True) for _ in "qkv"]

    def step(params: list[torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (F.linear(x, p) for p in params)
        return torch.autograd.grad((q.tanh() * k.sin() * v).sum(), params)

    rewritten = nmcompile.rewrite(make_fx(step)(params, x), EXACT, weights="params_*")
    found = [s for s in rewritten.meta["nm_report"].sites if s.role == "wgrad"]
    assert all("reads the pruned activation" in s.reason for s in found)
    pruned = step(params, nmcompile.functional.prune(x))
    torch.testing.assert_close(rewritten(params, x), pruned)


@pytest.mark.filterwarnings("ignore::nmcompile.NMWarning")
def test_a_product_of_two_gradients_is_no_gradient_of_activations() -> None:
    """The factors of K-FAC, which a hook computes beside the gradient of a layer."""
    up, down = nn.Linear(8, 12), nn.Linear(12, 8)
    up.register_buffer("factor", torch.zeros(12, 12))

    def run(x: torch.Tensor) -> torch.Tensor:
        h = up(x)
        h.register_hook(lambda g: (up.factor.copy_(g.t() @ g), g)[1])
        return down(h.tanh())

    rule = Rule(op="matmul", prune="gradient", format="2:4", method="mse")
    report = nmcompile.explain(run, torch.randn(6, 8), policy=Policy(rules=[rule]))
    found = [s for s in report.sites if s.op == "matmul"]
    assert [(s.guess and s.guess.code, s.pruned) for s in found] == [(Code.DOUBLE_GRADIENT, None)]
