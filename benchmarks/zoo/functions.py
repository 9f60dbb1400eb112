"""Models with autograd functions of their own, as fused kernels and losses bring them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.entry import Batch, Entry, tokens

WIDTH, HIDDEN, WORDS, ROWS = 16, 32, 48, 16


class Swiglu(torch.autograd.Function):
    """``(silu(x w1^T) * x w3^T) w2^T``; the backward computes what is between once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor) -> Tensor:
        ctx.save_for_backward(x, w1, w3, w2)
        return (functional.silu(x @ w1.t()) * (x @ w3.t())) @ w2.t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, w1, w3, w2 = ctx.saved_tensors
        gate, up = x @ w1.t(), x @ w3.t()
        sigmoid, silu = gate.sigmoid(), functional.silu(gate)
        dh = dy @ w2
        dup, dgate = dh * silu, dh * up * (sigmoid + silu * (1 - sigmoid))
        return dgate @ w1 + dup @ w3, dgate.t() @ x, dup.t() @ x, dy.t() @ (silu * up)


class ChunkedLoss(torch.autograd.Function):
    """Linear layer and cross entropy, a few rows at a time; the forward computes the gradients.

    As Liger-Kernel's ``LigerFusedLinearCrossEntropyFunction`` does, in plain PyTorch: the logits of
    all rows are never held.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
        dx, dw, loss = torch.empty_like(x), torch.zeros_like(w), x.new_zeros(())
        for start in range(0, len(x), ROWS):
            rows, wanted = x[start : start + ROWS], labels[start : start + ROWS, None]
            logits = rows @ w.t()
            loss = loss + (logits.logsumexp(-1, True) - logits.gather(1, wanted)).sum() / len(x)
            d = logits.softmax(-1) / len(x)
            d = d.scatter_add(1, wanted, torch.full_like(d[:, :1], -1 / len(x)))
            dx[start : start + ROWS] = d @ w
            dw = torch.addmm(dw, d.t(), rows)
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, dw = ctx.saved_tensors
        return dx * g, dw * g, None


class GatedUnit(nn.Module):
    """A feed-forward unit that is one function."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN))
        self.weights = nn.ParameterList(torch.randn(*shape) * 0.2 for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return x + Swiglu.apply(x, *self.weights)


class Head(nn.Module):
    """A language model's last layer and its loss, as one function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WORDS, WIDTH) * 0.2)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return ChunkedLoss.apply(x, self.weight, labels)


class Model(nn.Module):
    """Words in, loss out; ``unit`` and ``head`` are what an entry is about."""

    def __init__(self, unit: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.words, self.unit, self.head = nn.Embedding(WORDS, WIDTH), unit, head
        self.logits = nn.Linear(WIDTH, WORDS) if head is None else None

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.unit(self.words(ids.flatten()))
        if self.logits is not None:
            return functional.cross_entropy(self.logits(x), labels.flatten())
        assert self.head is not None
        return self.head(x, labels.flatten())


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch)
    return loss


Make = Callable[[], tuple[nn.Module, Batch]]
Loss = Callable[[nn.Module, Batch], Tensor]


def language_model(
    unit: Callable[[], nn.Module], head: Callable[[], nn.Module] | None = None, length: int = 16
) -> tuple[Make, Loss]:
    """How to make a model of such a unit and its batch, and its loss."""

    def make() -> tuple[nn.Module, Batch]:
        ids = tokens(WORDS, length)
        return Model(unit(), head() if head else None), {"ids": ids, "labels": ids.roll(1)}

    return make, _loss


ENTRIES = (
    Entry(
        "recomputing-unit",
        "custom function",
        *language_model(GatedUnit),
        "a gated unit whose backward computes its middle once more",
        fused=("unit",),
    ),
    Entry(
        "fused-loss",
        "custom function",
        *language_model(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()), Head),
        "a chunked loss whose forward computes its gradients, as Liger-Kernel's",
        fused=("head",),
    ),
)
