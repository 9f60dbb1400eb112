"""An independent simulation: the same masks by torch-function interception, in eager mode.

It knows nothing of graphs, sites or passes; it replaces ``linear`` and ``conv*d`` calls by
autograd functions that mask with the oracle of ``nmcompile.masks.reference`` ("mse" only, so
that it is deterministic).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nmcompile.masks import reference

#: (role, operand kind) -> (n, m)
Masks = Mapping[tuple[str, str], tuple[int, int]]


def masked(x: Tensor, masks: Masks, role: str, kind: str, dims: tuple[int, ...]) -> Tensor:
    """``x`` with the role's mask; a reduction shorter than m stays dense, as in the backend."""
    if (role, kind) not in masks:
        return x
    n, m = masks[role, kind]
    extent = 1
    for d in dims:
        extent *= x.shape[d]
    if extent < m or n == m:
        return x
    return reference.prune_and_mask(x, None, 0, n, m, dims, "mse")[0]


def in_groups(x: Tensor, masks: Masks, role: str, kind: str, dim: int, groups: int) -> Tensor:
    """Blocks along the channels of one group."""
    split = x.unflatten(dim, (groups, -1))
    return masked(split, masks, role, kind, (dim + 1,)).flatten(dim, dim + 1)


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, masks: Masks) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.masks = masks
        flat = x.reshape(-1, x.shape[-1])
        flat = masked(flat, masks, "fprop", "activation", (1,))
        y = flat @ masked(w, masks, "fprop", "weight", (1,)).t()
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x, w), masks = ctx.saved_tensors, ctx.masks
        dy, flat = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = masked(dy, masks, "dgrad", "gradient", (1,)) @ masked(
            w, masks, "dgrad", "weight", (0,)
        )
        dw = masked(dy, masks, "wgrad", "gradient", (0,)).t() @ masked(
            flat, masks, "wgrad", "activation", (0,)
        )
        return dx.view_as(x), dw, None


class Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, masks: Masks, config: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.masks, ctx.config = masks, config
        x = in_groups(x, masks, "fprop", "activation", 1, config[-1])
        w = masked(w, masks, "fprop", "weight", (1,))
        return torch.convolution(x, w, None, *config)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x, w), masks, config = ctx.saved_tensors, ctx.masks, ctx.config
        pixels = (0, *range(2, dy.dim()))
        run = torch.ops.aten.convolution_backward
        g = in_groups(dy, masks, "dgrad", "gradient", 1, config[-1])
        pw = in_groups(w, masks, "dgrad", "weight", 0, config[-1])
        dx = run(g, x, pw, None, *config, [True, False, False])[0]
        g = masked(dy, masks, "wgrad", "gradient", pixels)
        dw = run(g, x, w, None, *config, [False, True, False])[1]
        return dx, dw, None, None


class Oracle(TorchFunctionMode):
    """Within it, every linear layer and convolution uses the masks."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self.masks = masks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, w, bias = (*args, *kwargs.values(), None)[:3]
            y = Linear.apply(x, w, self.masks)
            return y if bias is None else y + bias
        if func in (F.conv1d, F.conv2d):
            x, w, bias, stride, padding, dilation, groups = args
            rank = w.dim() - 2
            config = (stride, padding, dilation, False, (0,) * rank, groups)
            y = Conv.apply(x, w, self.masks, config)
            return y if bias is None else y + bias.view(-1, *[1] * rank)
        return func(*args, **kwargs)
