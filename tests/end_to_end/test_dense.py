"""Policy ``dense`` is Inductor itself: the same losses and gradients, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(F.dropout(y.transpose(1, 2).flatten(2), 0.1))


MODELS = {
    "attention": (lambda: nn.Sequential(Attention(), nn.LayerNorm(16), Attention()), (2, 6, 16)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4)
        ),
        (2, 4, 12, 12),
    ),
}


def three_steps(model: nn.Module, x: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    torch._dynamo.reset()
    compiled = torch.compile(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    torch.manual_seed(7)
    for _ in range(3):
        loss = compiled(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        seen += [loss.detach().clone(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_bitwise_equal_to_inductor(name: str) -> None:
    make, shape = MODELS[name]
    model, x = make(), torch.randn(*shape)
    ours = three_steps(copy.deepcopy(model), x, backend="nm_sparse", options={"policy": "dense"})
    inductor = three_steps(copy.deepcopy(model), x, backend="inductor")
    assert all(torch.equal(a, b) for a, b in zip(ours, inductor, strict=True))
    pruned = three_steps(copy.deepcopy(model), x, backend="nm_sparse")
    assert not all(torch.equal(a, b) for a, b in zip(pruned, inductor, strict=True))
