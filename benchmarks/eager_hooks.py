"""The baseline: the policy ``full`` simulated by masks in eager hooks on an unchanged model.

Public codes for 2:4 training swap each linear layer for an ``autograd.Function`` that masks with
tensor operations: a top-k over blocks of four for the activation (magnitudes, forward product)
and an unbiased random mask of the neural gradient (both backward products). This one draws the
exact minimum variance estimate of Chmiel et al., arXiv 2203.10991, with as few tensor operations
as its author could; ``"compare"`` replaces the top-k by six comparisons, which no public code
does and which is the stronger opponent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Selection = Literal["topk", "compare"]
Model = TypeVar("Model", bound=nn.Module)


def mse_topk(x: Tensor) -> Tensor:
    """The two largest magnitudes of every four consecutive elements of the last dimension."""
    blocks = x.reshape(-1, 4)
    kept = blocks.abs().topk(2, dim=1, sorted=False).indices
    mask = torch.zeros_like(blocks).scatter_(1, kept, 1.0)
    return mask.mul_(blocks).view(x.shape)


def mse_compare(x: Tensor) -> Tensor:
    """``mse_topk`` without a sort: an element is kept when fewer than two others beat it."""
    blocks = x.reshape(-1, 4)
    a, b, c, d = blocks.abs().t().contiguous()
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    keep = torch.stack(
        (
            (ab & ac) | (ab & ad) | (ac & ad),
            (~ab & bc) | (~ab & bd) | (bc & bd),
            (~ac & ~bc) | (~ac & cd) | (~bc & cd),
            (~ad & ~bd) | (~ad & ~cd) | (~bd & ~cd),
        ),
        dim=1,
    )
    return (blocks * keep).view(x.shape)


def mvue(x: Tensor) -> Tensor:
    """The exact unbiased 2:4 estimate along the last dimension.

    With T = min(S/2, S - max) an element is kept with probability min(1, |a|/T) and then has the
    magnitude max(|a|, T); one uniform number a block.
    """
    blocks = x.reshape(-1, 4)
    magnitude = blocks.abs()
    total = magnitude.sum(1, keepdim=True)
    threshold = torch.minimum(total / 2, total - magnitude.amax(1, keepdim=True))
    threshold.clamp_(min=torch.finfo(x.dtype).tiny)  # a block with fewer than two non-zeros
    level = (magnitude / threshold).clamp_(max=1.0).cumsum(1)
    level = level.add_(torch.rand_like(total)).floor_().clamp_(max=2.0)
    keep = level.diff(dim=1, prepend=torch.zeros_like(total))
    return torch.copysign(torch.maximum(magnitude, threshold), blocks).mul_(keep).view(x.shape)


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mse: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.linear(mse(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].flatten(0, -2)  # [T, O]
        dx = mvue(dy) @ weight
        dw = mvue(dy.t().contiguous()) @ x.flatten(0, -2)
        db = dy.sum(0) if ctx.has_bias else None
        return dx.view(x.shape), dw, db, None


class _TopkLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _MaskedLinear.apply(input, self.weight, self.bias, mse_topk)


class _CompareLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _MaskedLinear.apply(input, self.weight, self.bias, mse_compare)


def use_eager_masks(model: Model, selection: Selection = "topk") -> Model:
    """Make every linear layer of ``model`` mask eagerly; changes and returns ``model``."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _TopkLinear if selection == "topk" else _CompareLinear
    return model
