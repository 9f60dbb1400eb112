"""One convolution_backward becomes one node per role, only where something is pruned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import Policy, Rule
from tests.passes.rewritten import interesting


def backward_nodes(role: str | None, bias: bool = True, input_grad: bool = True) -> list[str]:
    rules = [Rule(prune="gradient", role=role, format="2:4")] if role else []
    x = torch.randn(2, 8, 6, 6, requires_grad=input_grad)
    report = nmcompile.explain(nn.Conv2d(8, 8, 3, bias=bias), x, policy=Policy(rules=rules))
    return [
        line.split("[")[-1].rstrip("])")
        for line in interesting(report.graphs[0].after).splitlines()
        if "convolution_backward(" in line
    ]


def test_untouched_where_nothing_is_pruned() -> None:
    assert backward_nodes(None) == ["True, True, True"]


@pytest.mark.parametrize("role", ["dgrad", "wgrad"])
def test_split_where_one_role_is_pruned(role: str) -> None:
    assert backward_nodes(role) == ["True, False, False", "False, True, False"]


def test_only_the_outputs_that_are_needed() -> None:
    assert backward_nodes("wgrad", bias=False, input_grad=False) == ["False, True, False"]


def test_the_bias_gradient_is_of_the_dense_gradient() -> None:
    model, dy = nn.Conv2d(8, 8, 3, padding=1), torch.randn(2, 8, 6, 6)
    compiled = torch.compile(model, backend="nm_sparse", options={"policy": "gradients"})
    compiled(torch.randn(2, 8, 6, 6)).backward(dy)
    torch.testing.assert_close(model.bias.grad, dy.sum((0, 2, 3)))
