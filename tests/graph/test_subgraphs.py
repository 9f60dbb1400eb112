"""What higher-order operators hold is planned once, and as the caller knows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile import NMWarning
from nmcompile.reason import Code

X = torch.randn(12, 16, requires_grad=True)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x).tanh()


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, other = (lambda x: self.a(x).tanh()), (lambda x: self.b(x).relu())
        return torch.cond(x.sum() > 0, one, other, (x,))


@pytest.mark.parametrize(("block", "products"), [(Block, 3), (Branch, 16)])
def test_nothing_inside_is_pruned(block: Callable[[], nn.Module], products: int) -> None:
    with pytest.warns(NMWarning, match="inside of a higher-order operator"):
        report = nmcompile.explain(nn.Sequential(block(), block(), nn.Linear(16, 8)), X)
    inside = [s for s in report.sites if s.has(Code.IN_SUBGRAPH)]
    assert len(inside) == products
    assert not any(s.pruned for s in inside)
    assert [str(s.role) for s in report.sites if s.pruned] == ["fprop", "dgrad", "wgrad"]
    assert report.skipped == ()
