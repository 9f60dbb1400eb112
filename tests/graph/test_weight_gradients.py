"""A weight gradient without a forward product is what becomes a parameter's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile.reason import Code
from nmcompile.report.rows import Site

X = torch.randn(12, 16, requires_grad=True)


class Hidden(torch.autograd.Function):
    """``x w^T`` without a product that the graph shows; its backward multiplies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (x[:, None, :] * w).sum(-1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


def backward(f: Callable[..., Tensor]) -> list[Site]:
    return [s for s in nmcompile.explain(f, X).sites if s.role != "fprop"]


w, table = nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(3, 8, 16))
wide = nn.Parameter(torch.randn(16, 8))
EXPERT = torch.tensor([1])

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: Hidden.apply(x, w),
    "transposed": lambda x: Hidden.apply(x, wide.t()),
    "a part": lambda x: Hidden.apply(x, table[1]),
    "gathered": lambda x: Hidden.apply(x, table[EXPERT].view(8, 16)),
    "joined": lambda x: Hidden.apply(x, torch.cat([w, table[0]])),
    "used twice": lambda x: Hidden.apply(x, w) * Hidden.apply(x.sin(), w),
    "cast": lambda x: Hidden.apply(x.double(), w.double()),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_reaches_a_parameters_gradient_is_a_weight_gradient(name: str) -> None:
    found = backward(WEIGHTS[name])
    roles = sorted((str(s.op), str(s.role), str(s.pruned)) for s in found)
    uses = len(found) // 2
    dgrad, wgrad = ("linear", "dgrad", "gradient"), ("linear", "wgrad", "gradient")
    assert roles == [dgrad] * uses + [wgrad] * uses
    assert uses == (2 if name == "used twice" else 1)


def test_what_does_not_is_dense() -> None:
    """A solve multiplies in its backward, and neither factor is a weight."""
    layer = nn.Linear(16, 32)

    def solve(x: Tensor) -> Tensor:
        k, v = layer(x.view(1, 12, 16)).chunk(2, -1)
        a = torch.tril(k @ k.mT, -1) * 0.1 + torch.eye(12)
        return torch.linalg.solve_triangular(a, v, upper=False, unitriangular=True)

    guessed = [s for s in backward(solve) if s.guess]
    assert [(str(s.op), s.guess.code, s.pruned) for s in guessed if s.guess] == [
        ("matmul", Code.NO_FORWARD, None)
    ]
    policy = {"schema": 1, "rule": [{"op": "matmul", "prune": "gradient", "format": "2:4"}]}
    with pytest.warns(nmcompile.NMWarning, match="whose forward is no product"):
        report = nmcompile.explain(solve, X, policy=policy)
    assert [s.pruned for s in report.sites if s.guess] == [None]
    assert sum(str(s.pruned) == "gradient" for s in report.sites) == 2


def test_what_is_computed_of_a_parameter_needs_a_forward_product() -> None:
    """Its gradient passes through more than sums."""
    found = backward(lambda x: x @ w.tanh().t())
    (wgrad,) = (s for s in found if str(s.role) == "wgrad")
    assert (wgrad.guess, str(wgrad.pruned)) == (None, "gradient")
    guessed = [s for s in backward(lambda x: Hidden.apply(x, w.tanh())) if s.guess]
    assert [s.guess.code for s in guessed if s.guess] == [Code.NO_FORWARD]


def test_what_becomes_the_gradient_of_a_bias_alone_is_none() -> None:
    """``y @ ones`` of one column is no product here; its gradient is summed for the bias."""
    layer = nn.Linear(16, 1)
    found = backward(lambda x: (layer(x) * 1) @ torch.ones(1, 4))
    assert [(str(s.op), str(s.pruned)) for s in found if s.sizes[1:] == ("12", "1", "4")] == [
        ("matmul", "None")
    ]
