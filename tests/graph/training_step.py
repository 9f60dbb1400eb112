"""A whole training step as a graph: forward, backward and update, traced by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx


def traced(model: nn.Module, x: torch.Tensor, mode: str = "real") -> tuple[Any, Any, Any]:
    """The graph of one step of gradient descent, its parameters, and the step itself."""
    params = {k: v.detach().requires_grad_() for k, v in model.named_parameters()}

    def step(params: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[Any, ...]:
        loss = functional_call(model, params, (x,)).square().mean()
        grads = torch.autograd.grad(loss, list(params.values()))
        return loss, [p - 0.1 * g for p, g in zip(params.values(), grads, strict=True)]

    return make_fx(step, tracing_mode=mode)(params, x), params, step
