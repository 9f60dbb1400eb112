"""A training step of a network, and the variants of its compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.eager_hooks import use_eager_masks


class Workload(Protocol):
    """A network and a step's batch; ``str`` of it names them and their sizes."""

    @property
    def depth(self) -> int:
        """What a row calls ``x``."""
        ...

    def build(self) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """A module whose forward is the loss, and its arguments; drawn from the current seed."""
        ...


class Trainer:
    """One variant: a model with the same initial parameters as every other, and its step."""

    def __init__(self, provider: str, workload: Workload) -> None:
        torch.manual_seed(0)
        self.model, self._batch = workload.build()
        self.compiled = PROVIDERS[provider](self.model)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def forward(self) -> Tensor:
        """The loss."""
        return self.compiled(*self._batch)

    def update(self) -> None:
        """SGD, then drop the gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> float:
        """Forward, loss, backward, SGD, zero_grad."""
        loss = self.forward()
        loss.backward()
        self.update()
        return loss.item()


def _policy(policy: Any) -> Callable[[nn.Module], Callable[..., Tensor]]:
    def compile_(model: nn.Module) -> Callable[..., Tensor]:
        options = {"policy": policy}
        return torch.compile(model, backend="nm_sparse", options=options, fullgraph=True)

    return compile_


def _inductor(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(model, backend="inductor", fullgraph=True)


#: Steps for which a kept mask is kept.
KEPT_FOR = 40
#: Every variant that a section can measure. The eager masks do what the policy "full" does.
PROVIDERS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "inductor": _inductor,
    "full": _policy("full"),
    "activations": _policy("activations"),
    "gradients": _policy("gradients"),
    "weights": _policy("weights"),
    f"weights, refresh {KEPT_FOR}": _policy({"extends": "weights", "refresh": KEPT_FOR}),
    "dense": _policy("dense"),
    "eager-dense": lambda model: model,
    "eager-hooks": lambda model: use_eager_masks(model, "topk"),
    "eager-compare": lambda model: use_eager_masks(model, "compare"),
    "eager-hooks+inductor": lambda model: _inductor(use_eager_masks(model, "topk")),
}
