"""Autograd Functions with products of their own, as source: a find's script holds what it uses."""

from __future__ import annotations

import sys
from typing import Any

import torch

_MULTIPLY = """
class Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x
"""

_MULTIPLYTWICE = """
class MultiplyTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        h = x @ w.t()
        ctx.save_for_backward(x, w, h)
        return h.tanh() @ w

    @staticmethod
    def backward(ctx, g):
        x, w, h = ctx.saved_tensors
        d = (g @ w.t()) * (1 - h.tanh() ** 2)
        return d @ w, h.tanh().t() @ g + d.t() @ x
"""

_LOSSINFORWARD = """
class LossInForward(torch.autograd.Function):
    # As fused losses do: the forward computes the gradients and keeps them.
    @staticmethod
    def forward(ctx, x, w):
        h = x @ w.t()
        d = h.softmax(-1) - 1.0 / len(w)
        ctx.save_for_backward(d @ w, d.t() @ x)
        return h.logsumexp(-1) - h.mean(-1)

    @staticmethod
    def backward(ctx, g):
        dx, dw = ctx.saved_tensors
        return g.mean() * dx, g.mean() * dw
"""

#: Name -> source.
FUNCTIONS = {
    "Multiply": _MULTIPLY,
    "MultiplyTwice": _MULTIPLYTWICE,
    "LossInForward": _LOSSINFORWARD,
}


def used(text: str) -> list[str]:
    """The sources of the Functions that ``text`` applies."""
    return [source for name, source in FUNCTIONS.items() if f"{name}.apply" in text]


def classes() -> dict[str, Any]:
    """Every Function, by name."""
    space: dict[str, Any] = {"torch": torch}
    for source in FUNCTIONS.values():
        exec(source, space)
    return {name: space[name] for name in FUNCTIONS}


def gradient_in_forward() -> torch.Tensor | None:
    """The gradient that ``LossInForward`` has computed, while its forward runs."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            break
        if frame.f_code.co_qualname == "LossInForward.forward":
            value = frame.f_locals.get("d")
            return value if isinstance(value, torch.Tensor) else None
        frame = frame.f_back
    return None
