"""Linear layers that train in float8, written out: scaling and casts of torchao's recipes.

Each of its three products casts its own operands: ``tensorwise`` with one scale for a tensor,
``rowwise`` with one for each row of what the product reduces, ``rowwise_with_gw_hp`` with the
weight gradient in high precision. ``emulate`` multiplies dequantised values instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.functions import HIDDEN, WIDTH, language_model

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")

#: 8-bit values and their scale.
Scaled = tuple[Tensor, Tensor]


def to_float8(x: Tensor, dtype: torch.dtype = E4M3, dim: int | None = None) -> Scaled:
    """8-bit values of ``x`` and their scale: one, or one for each of what is left along ``dim``."""
    amax = x.abs().max() if dim is None else x.abs().amax(dim, keepdim=True)
    largest = torch.finfo(dtype).max
    scale = (largest / amax.double().clamp(min=1e-12)).float()
    return (x.float() * scale).clamp(-largest, largest).to(dtype), scale


def multiply(a: Scaled, b: Scaled, emulate: bool, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The product of two 8-bit matrices, in ``dtype``; the right one may lie in any order."""
    (left, left_scale), (right, right_scale) = a, b
    if emulate:
        return ((left.float() / left_scale) @ (right.float() / right_scale)).to(dtype)
    left, right = left.contiguous(), right.t().contiguous().t()
    if left_scale.dim() == 0 and right_scale.dim() == 0:
        scales = left_scale.reciprocal(), right_scale.reciprocal()
        return torch._scaled_mm(left, right, *scales, out_dtype=dtype)
    one = torch.ones((), device=left.device)
    result = torch._scaled_mm(left, right, one, one, out_dtype=dtype)
    return (result * (left_scale.reciprocal() * right_scale.reciprocal())).to(dtype)


class Linear8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, recipe: str, emulate: bool) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.recipe, ctx.emulate = recipe, emulate
        one = recipe == "tensorwise"
        bits, scale = to_float8(x, dim=None if one else -1)
        left = bits.reshape(-1, x.shape[-1]), scale if one else scale.reshape(-1, 1)
        y = multiply(left, to_float8(w.t(), dim=None if one else 0), emulate, x.dtype)
        return y.reshape(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (x, w), one = ctx.saved_tensors, ctx.recipe == "tensorwise"
        rows, dtype = dy.reshape(-1, dy.shape[-1]), E5M2 if one else E4M3
        weight = to_float8(w, dim=0 if ctx.recipe == "rowwise" else None)
        scaled = to_float8(rows, dtype, None if one else -1)
        dx = multiply(scaled, weight, ctx.emulate, x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        if ctx.recipe == "rowwise_with_gw_hp":
            return dx.reshape(x.shape), rows.t() @ flat, None, None
        gradient, scale = to_float8(rows, dtype, None if one else 0)
        scaled = gradient.t(), scale.t()
        dw = multiply(scaled, to_float8(flat, dim=None if one else 0), ctx.emulate, x.dtype)
        return dx.reshape(x.shape), dw, None, None


class Float8Linear(nn.Linear):
    """``nn.Linear`` of that kind, without a bias."""

    def __init__(
        self,
        i: int,
        o: int,
        recipe: str = "tensorwise",
        emulate: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(i, o, bias=False, dtype=dtype)
        self.recipe, self.emulate = recipe, emulate

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Linear8.apply(x, self.weight, self.recipe, self.emulate)
        return y


class Unit(nn.Module):
    """A feed-forward unit in float8 whose other operations are in float32.

    In bfloat16 Inductor leaves out roundings that eager mode makes.
    """

    def __init__(self, recipe: str, emulate: bool = False) -> None:
        super().__init__()
        self.up = Float8Linear(WIDTH, HIDDEN, recipe, emulate, torch.float32)
        self.down = Float8Linear(HIDDEN, WIDTH, recipe, emulate, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.up(x).tanh())
        return y


def _entry(name: str, recipe: str, note: str, emulate: bool = False) -> Entry:
    make, loss = language_model(lambda: Unit(recipe, emulate))
    text = f"{note}; masks are taken before the casts"
    return Entry(name, "float8", make, loss, text)


ENTRIES = (
    _entry("float8-tensorwise", "tensorwise", "`_scaled_mm`, one scale for a tensor"),
    _entry(
        "float8-rowwise",
        "rowwise_with_gw_hp",
        "`_scaled_mm`, a scale for each row, the weight gradient in high precision",
    ),
    _entry("float8-emulated", "tensorwise", "products of dequantised values", emulate=True),
)
