"""Roles of backward products without Autograd's numbering: a hand-traced training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from nmcompile import NMError
from nmcompile.report.report import Report


def traced(model: nn.Module, x: torch.Tensor, mode: str = "real") -> tuple[Any, Any, Any]:
    params = {k: v.detach().requires_grad_() for k, v in model.named_parameters()}

    def step(params: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[Any, ...]:
        loss = functional_call(model, params, (x,)).square().mean()
        grads = torch.autograd.grad(loss, list(params.values()))
        return loss, [p - 0.1 * g for p, g in zip(params.values(), grads, strict=True)]

    return make_fx(step, tracing_mode=mode)(params, x), params, step


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


def test_policy_dense_computes_what_the_graph_computed() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    gm, params, _ = traced(model, torch.randn(12, 16))
    x = torch.randn(12, 16)
    (a, b), (c, d) = nmcompile.rewrite(gm, "dense")(params, x), gm(params, x)
    assert torch.equal(a, c)
    assert all(torch.equal(p, q) for p, q in zip(b, d, strict=True))


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


def test_a_pattern_that_names_nothing() -> None:
    gm, *_ = traced(nn.Linear(16, 8), torch.randn(4, 16))
    with pytest.raises(NMError, match=r"no placeholder 'parms_\*': did you mean 'params_"):
        nmcompile.rewrite(gm, "full", weights="parms_*")


def test_a_graph_without_values() -> None:
    gm = torch.fx.symbolic_trace(nn.Linear(4, 4))
    with pytest.raises(NMError, match=r"no meta\['val'\]: trace with .*make_fx"):
        nmcompile.rewrite(gm, "full")
