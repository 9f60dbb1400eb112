"""Code of a forward that a backward calls again is not pruned there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile import NMWarning

W, C = nn.Parameter(torch.randn(16, 16)), torch.randn(8, 16)


@pytest.mark.parametrize(("policy", "is_pruned"), [("full", True), ("dense", False)])
def test_a_backward_calls_what_an_evaluation_compiled(policy: str, is_pruned: bool) -> None:
    project = torch.compile(lambda g: g @ W, backend="nm_sparse", options={"policy": policy})

    class Aligned(torch.autograd.Function):
        """Feedback alignment: the gradient goes back through a layer of its own."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            result: Tensor = project(g)
            return result

    with torch.no_grad():
        forward = project(C)
    x = torch.randn(8, 16, requires_grad=True)
    loss = (Aligned.apply(x) * C).sum()
    if is_pruned:
        with pytest.warns(NMWarning, match="called again, and runs dense.* autograd engine"):
            loss.backward()
    else:
        loss.backward()
    torch.testing.assert_close(x.grad, (C @ W).detach())
    assert torch.allclose(forward, x.grad) is not is_pruned
    assert len(nmcompile.last_report().graphs) == 1
    with torch.no_grad():
        assert torch.equal(project(C), forward)
