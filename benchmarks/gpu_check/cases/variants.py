"""What a training step is compared as: one network, compiled in different ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import nmcompile
from benchmarks.gpu_check.cases.networks import Batch
from benchmarks.gpu_check.device import Device
from nmcompile import Policy

DENSE = "inductor"
UNFUSED, SIMULATED = "full, unfused", "full, simulated"
Build = Callable[[str], tuple[nn.Module, Batch]]


@dataclass
class Variant:
    """One compiled model, its optimizer and its batch."""

    provider: str
    model: nn.Module
    run: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    batch: Batch

    def step(self, update: bool) -> Tensor:
        """Forward, backward, the optimizer if wanted, and drop the gradients; the loss."""
        torch.compiler.cudagraph_mark_step_begin()
        loss = self.run(*self.batch)
        loss.backward()
        if update:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def variant(provider: str, mode: str, build: Build, device: Device) -> Variant:
    """A variant that is not compiled yet; every one starts from the same parameters."""
    model, batch = build(device.name)
    options: dict[str, Any] = {}
    if mode == "reduce-overhead":
        options = dict(torch._inductor.list_mode_options(mode))
    keywords: dict[str, Any] = {"backend": DENSE}
    if provider != DENSE:
        keywords["backend"] = nmcompile.nm_sparse
        options |= _ours(provider, device.rehearsal)
        if mode == "autotune":
            options["nm.autotune"] = True
    if mode == "reduce-overhead" and (provider == DENSE or options.get("policy") == "full"):
        keywords["mode"] = mode  # torch.compile takes either; the default policy is "full"
    elif options:
        keywords["options"] = options
    compiled = torch.compile(model, dynamic=False, fullgraph=True, **keywords)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return Variant(provider, model, compiled, optimizer, batch)


def _ours(provider: str, rehearsal: bool) -> dict[str, Any]:
    """The backend's options: a recipe, and how it runs where the name says more."""
    recipe, _, how = provider.partition(", ")
    # In a rehearsal "auto" would simulate: the CPU gains nothing from sparsity.
    execution = "simulate" if how == "simulated" else "sparse" if rehearsal else ""
    policy = Policy(extends=recipe, execution=execution) if execution else recipe
    return {"policy": policy, **({"nm.kernels": "unfused"} if how == "unfused" else {})}
