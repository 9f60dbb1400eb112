"""What networks call beside PyTorch, as source: a find's script holds what it uses.

Autograd Functions with products of their own, and grouped products in every dtype.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn import functional as F

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

#: Under a compiler PyTorch's own takes bfloat16 alone, on the CPU never float64; rows behind the
#: last offset hold whatever the memory did.
_GROUPED = """
def grouped_mm(x, w, offs=None):
    if x.dtype == torch.bfloat16:
        return F.grouped_mm(x, w, offs=offs)
    if offs is None:
        return x @ w
    ends = offs.tolist()
    groups = [slice(a, b) for a, b in zip([0, *ends], ends)]
    if x.dim() == 3:
        parts = [m @ w[:, rows] for m, rows in zip(x, groups)]
        return torch.cat([*parts, w.new_zeros(x.shape[1], w.shape[1] - ends[-1])], 1)
    if w.dim() == 3:
        parts = [x[rows] @ m for m, rows in zip(w, groups)]
        return torch.cat([*parts, x.new_zeros(len(x) - ends[-1], w.shape[2])])
    return torch.stack([x[:, rows] @ w[rows] for rows in groups])
"""

#: transformers' own, which takes every dtype; importing it is what registers it.
_FALLBACK = """
import transformers.integrations.moe
"""

#: Name -> source.
FUNCTIONS = {
    "Multiply": _MULTIPLY,
    "MultiplyTwice": _MULTIPLYTWICE,
    "LossInForward": _LOSSINFORWARD,
}


_CALLS = {
    **{f"{name}.apply": source for name, source in FUNCTIONS.items()},
    "grouped_mm(": _GROUPED,
    "grouped_mm_fallback(": _FALLBACK,
}


def used(text: str) -> list[str]:
    """The sources of what ``text`` calls."""
    return [source for call, source in _CALLS.items() if call in text]


def functions() -> dict[str, Any]:
    """Every Function and function, by name."""
    space: dict[str, Any] = {"torch": torch, "F": F}
    for source in (*FUNCTIONS.values(), _GROUPED):
        exec(source, space)
    return {name: space[name] for name in (*FUNCTIONS, "grouped_mm")}


def register_fallback() -> None:
    """Let ``torch.ops.transformers.grouped_mm_fallback`` be one."""
    exec(_FALLBACK, {})


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
