"""What runs eagerly is counted by layer, with the products that its backward will have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile.capture.eager import EagerProducts
from nmcompile.reason import Code
from tests.graph.test_insert import Function


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rnn = nn.Linear(8, 8), nn.LSTM(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(self.fc(x))[0]
        return y @ y.transpose(-1, -2)


def counted(model: nn.Module, run: Callable[[], object]) -> dict[tuple[str, str, str], object]:
    mode = EagerProducts({m: p for p, m in model.named_modules()})
    with mode:
        run()
    return {(k.path, k.module_class, k.target): (n.calls, n.flops) for k, n in mode.found.items()}


LINEAR = 2 * 6 * 8 * 8
RNN = 2 * 6 * (16 * 8 + 16 * 4)
SELF = 2 * 2 * 3 * 3 * 4


def test_a_step_multiplies_once_more_for_each_operand_with_a_gradient() -> None:
    model, x = Net(), torch.randn(2, 3, 8)
    assert counted(model, lambda: model(x)) == {
        ("fc", "Linear", "aten.addmm"): (1, 2.0 * LINEAR),  # no gradient of x
        ("rnn", "LSTM", "aten.mkldnn_rnn_layer"): (1, 3.0 * RNN),
        ("", "Net", "aten.bmm"): (1, 3.0 * SELF),
    }


def test_without_gradients_and_under_inference_mode_there_is_the_product_alone() -> None:
    fc, x = nn.Linear(8, 8), torch.randn(2, 3, 8)
    expected = {("", "Linear", "aten.addmm"): (1, float(LINEAR))}
    with torch.no_grad():
        assert counted(fc, lambda: fc(x)) == expected
    with torch.inference_mode():
        assert counted(fc, lambda: fc(x)) == expected


def test_what_autograd_multiplies_with_a_sum() -> None:
    a, b = (torch.randn(8, requires_grad=True) for _ in range(2))
    w = torch.randn(4, 8, requires_grad=True)
    bilinear, x = nn.Bilinear(8, 8, 5), torch.randn(3, 8, requires_grad=True)
    for run, products, one in (
        (lambda: a.dot(b), 1, 2 * 8),
        (lambda: w.mv(a), 2, 2 * 4 * 8),
        (lambda: torch.addmv(a[:4], w, b), 2, 2 * 4 * 8),
        (lambda: bilinear(x, x), 4, 2 * 3 * 5 * 8 * 8),
    ):
        ((_, flops),) = counted(bilinear, run).values()
        assert flops == products * one


def test_what_is_fused_is_listed_without_a_size() -> None:
    q = torch.randn(1, 2, 4, 8)
    mode = EagerProducts({})
    with mode:
        nn.functional.scaled_dot_product_attention(q, q, q)
    ((layer, count),) = mode.found.items()
    assert layer.reason is not None
    assert (layer.reason.code, count.flops) == (Code.FUSED_ATTENTION, None)


def test_what_is_unseen_is_not_counted() -> None:
    mode = EagerProducts({})
    with mode, mode.unseen():
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert mode.found == {}


class Broken(Function):
    """Dynamo traces it in pieces."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return Function.forward(ctx, x, w)


def test_what_the_backward_of_a_function_multiplies_by_itself_is_said_to_be_missing() -> None:
    w, x = nn.Parameter(torch.randn(16, 16)), torch.randn(8, 16, requires_grad=True)
    with pytest.warns(nmcompile.NMWarning, match="which may compute gradients"):
        report = nmcompile.explain(lambda x: Broken.apply(x, w).sin(), x)
    assert [note.text for note in report.notes if "is not counted" in note.text]
    with torch.no_grad(), pytest.warns(nmcompile.NMWarning):
        report = nmcompile.explain(lambda x: Broken.apply(x, w).sin(), x)
    assert not report.notes
