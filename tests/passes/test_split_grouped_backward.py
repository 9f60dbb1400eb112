"""transformers' grouped backward becomes one node per role, only where something is pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.functional import prune

pytest.importorskip("transformers.integrations.moe", reason="its operators are split")

E, S, I, O = 3, 22, 8, 12  # noqa: E741
ENDS = [5, 5, 18]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, I, O))

    def forward(self, x: Tensor) -> Tensor:
        offs = torch.tensor(ENDS, dtype=torch.int32)
        return torch.ops.transformers.grouped_mm_fallback(x, self.weight, offs)


def nodes(*rules: Rule, input_grad: bool = True) -> list[str]:
    """The nodes of the backward, with what each computes."""
    x = torch.randn(S, I, requires_grad=input_grad)
    after = nmcompile.explain(Experts(), x, policy=Policy(rules=rules)).graphs[0].after
    found = []
    for line in after.splitlines():
        if "grouped_mm_fallback_backward.default(" in line:
            found.append("both")
        elif "grouped_gradient.default(" in line:
            found.append("dw" if "True)" in line else "dx")
    return found


def test_untouched_where_nothing_is_pruned() -> None:
    assert nodes() == ["both"]
    assert nodes(Rule(prune="activation", role="fprop", format="2:4")) == ["both"]


@pytest.mark.parametrize("role", ["dgrad", "wgrad"])
def test_split_where_one_role_is_pruned(role: str) -> None:
    rule = Rule(prune="gradient", role=role, format="2:4")
    assert nodes(rule) == ["dx", "dw"]
    assert nodes(Rule(prune="gradient", format="2:4"), input_grad=False) == ["dw"]


def step(policy: Policy) -> tuple[Tensor, Tensor, Tensor, Experts, Tensor, Tensor]:
    model, x, dy = Experts(), torch.randn(S, I, requires_grad=True), torch.randn(S, O)
    options = {"policy": policy}
    y = torch.compile(model, backend="nm_sparse", options=options, fullgraph=True)(x)
    y.backward(dy)
    assert x.grad is not None
    return y, x.grad, model.weight.grad, model, x.detach(), dy


def test_gradients_are_those_of_a_loop_over_the_experts() -> None:
    rules = [
        Rule(prune="activation", role="fprop", format="2:4"),
        Rule(prune="gradient", role="dgrad", format="2:4", method="mse"),
        Rule(prune="gradient", role="wgrad", format="1:4", method="mse"),
    ]
    y, dx, dw, model, x, dy = step(Policy(rules=rules))
    start = 0
    for w, grad, end in zip(model.weight.detach(), dw, ENDS, strict=True):
        rows = slice(start, end)
        assert torch.equal(y[rows], prune(x[rows]) @ w)
        assert torch.equal(dx[rows], prune(dy[rows]) @ w.t())
        expected = x[rows].t() @ prune(dy[rows], "1:4", 0) if end > start else torch.zeros(I, O)
        assert torch.equal(grad, expected)
        start = end


@pytest.mark.parametrize("prunes_gradients", [False, True])
def test_an_exact_backward_masks_dx_and_reads_the_pruned_rows(prunes_gradients: bool) -> None:
    """Also where the backward is not split, and one node computes both."""
    rules = [Rule(prune="activation", role="fprop", format="2:4", backward="exact")]
    if prunes_gradients:
        rules += [Rule(prune="gradient", format="1:4", method="mse")]
    _, dx, dw, model, x, dy = step(Policy(rules=rules))
    start = 0
    for w, grad, end in zip(model.weight.detach(), dw, ENDS, strict=True):
        rows = slice(start, end)
        of_x, of_w = dy[rows], dy[rows]
        if prunes_gradients and end > start:
            of_x, of_w = prune(of_x, "1:4", 1), prune(of_w, "1:4", 0)
        assert torch.equal(dx[rows], torch.where(prune(x[rows]) != 0, of_x @ w.t(), 0))
        assert torch.equal(grad, prune(x[rows]).t() @ of_w)
        start = end
