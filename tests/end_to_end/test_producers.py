"""A pointwise producer in front of a mask never breaks "exactly N of M".

Inductor may inline a producer twice, once vectorised and once scalar, with different rounding; a
mask made of comparisons would then compare an element with another version of itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

PRODUCERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nn.functional.gelu,
    "softmax": lambda x: torch.softmax(x, -1),
    "layer_norm": lambda x: nn.functional.layer_norm(x, x.shape[-1:]),
    "erf of a sum": lambda x: torch.erf(x + x.flip(-1)),
    "equal values": lambda x: torch.ones_like(x) * x[:, :1].sigmoid(),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_exactly_n_survive(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(36, 36, bias=False)
            nn.init.eye_(self.fc.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(PRODUCERS[name](x))

    y = torch.compile(Net(), backend="nm_sparse", options={"policy": "activations"})(
        torch.randn(333, 36)
    )
    assert ((y.unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all()
