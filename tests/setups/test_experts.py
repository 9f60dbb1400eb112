"""Experts by grouped products, compiled: equal to a loop over them, for any number of tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmcompile import Policy, Rule
from nmcompile.functional import prune

E, I, O = 3, 16, 24  # noqa: E741


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, O, I, dtype=torch.bfloat16))

    def forward(self, x: Tensor, offs: Tensor) -> Tensor:
        return F.grouped_mm(x, self.weight.transpose(1, 2), offs=offs)


def tokens(count: int) -> tuple[Tensor, Tensor]:
    """Tokens and their gradients."""
    x = torch.randn(count, I, dtype=torch.bfloat16, requires_grad=True)
    return x, torch.randn(count, O, dtype=torch.bfloat16)


def groups(ends: list[int]) -> list[slice]:
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.slow
def test_all_three_products_for_any_number_of_tokens() -> None:
    rules = [
        Rule(prune="activation", role="fprop", format="2:4"),
        Rule(prune="gradient", format="2:4", method="mse"),
    ]
    model, graphs = Experts(), []
    options = {"policy": Policy(rules=rules)}
    run = torch.compile(model, backend="nm_sparse", options=options, dynamic=True, fullgraph=True)
    w = model.weight.detach()
    for ends, count in (([5, 5, 18], 20), ([0, 2, 41], 41), ([7, 7, 7], 9)):
        model.weight.grad, (x, dy) = None, tokens(count)
        y = run(x, torch.tensor(ends, dtype=torch.int32))
        y.backward(dy)
        for e, rows in enumerate(groups(ends)):
            if rows.start == rows.stop:
                assert not model.weight.grad[e].any()
                continue
            data, grad = x.detach()[rows], dy[rows]
            torch.testing.assert_close(y[rows], prune(data) @ w[e].t())
            torch.testing.assert_close(x.grad[rows], prune(grad) @ w[e])
            torch.testing.assert_close(model.weight.grad[e], prune(grad, dim=0).t() @ data)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == graphs[:1] * 3  # no other compilation


@pytest.mark.slow
def test_half_of_a_row_that_has_no_multiple_of_16_bytes() -> None:
    w = nn.Parameter(torch.randn(E, 12, O, dtype=torch.bfloat16))

    def half(x: Tensor, offs: Tensor) -> Tensor:
        return F.grouped_mm(x.chunk(2, -1)[0], w, offs=offs)

    x = torch.randn(18, 24, dtype=torch.bfloat16, requires_grad=True)
    offs = torch.tensor([5, 5, 18], dtype=torch.int32)
    rules = [Rule(prune=kind, format="2:4") for kind in ("activation", "gradient")]
    options = {"policy": Policy(rules=rules)}
    y = torch.compile(half, backend="nm_sparse", options=options)(x, offs)
    torch.testing.assert_close(y, half(x, offs))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_an_exact_backward(kind: str) -> None:
    rule = Rule(prune=kind, role="fprop", format="2:4", backward="exact")
    model, ends = Experts(), [5, 5, 18]
    options = {"policy": Policy(rules=[rule])}
    x, dy = tokens(18)
    run = torch.compile(model, backend="nm_sparse", options=options)
    run(x, torch.tensor(ends, dtype=torch.int32)).backward(dy)
    data, w = x.detach(), model.weight.detach()
    data, w = (prune(data), w) if kind == "activation" else (data, prune(w))
    for e, rows in enumerate(groups(ends)):
        dx, dw = dy[rows] @ w[e], dy[rows].t() @ data[rows]
        dx, dw = (dx * (data[rows] != 0), dw) if kind == "activation" else (dx, dw * (w[e] != 0))
        torch.testing.assert_close(x.grad[rows], dx)
        torch.testing.assert_close(model.weight.grad[e], dw)
