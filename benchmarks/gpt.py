"""The model that the training-step benchmark trains, and the variants of its compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.eager_hooks import use_eager_masks

VOCABULARY = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a step."""

    width: int = 512
    depth: int = 3
    heads: int = 8
    context: int = 256
    batch: int = 8

    def at_depth(self, depth: int) -> Shape:
        """The same with another number of blocks."""
        return replace(self, depth=depth)

    def __str__(self) -> str:
        return (
            f"gpt width={self.width} depth={self.depth} heads={self.heads} "
            f"tokens={self.batch}x{self.context} float32"
        )


FULL = Shape()
QUICK = Shape(width=64, depth=1, heads=2, context=32, batch=2)


class Block(nn.Module):
    """Pre-LayerNorm attention and MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, C, W]
        b, c, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, c, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, c, w))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A byte-level language model; its forward is the loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, shape.width)
        self.positions = nn.Parameter(torch.randn(shape.context, shape.width) * 0.02)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width)
        self.lm_head = nn.Linear(shape.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # [B, C], [B, C]
        x = self.blocks(self.tokens(tokens) + self.positions)
        return F.cross_entropy(self.lm_head(self.norm(x)).flatten(0, 1), targets.flatten())


class Trainer:
    """One variant: a model with the same initial parameters as every other, and its step."""

    def __init__(self, provider: str, shape: Shape) -> None:
        torch.manual_seed(0)
        self.model = GPT(shape)
        self._loss = PROVIDERS[provider](self.model)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        bytes_ = torch.randint(VOCABULARY, (shape.batch, shape.context + 1))
        self._batch = bytes_[:, :-1].contiguous(), bytes_[:, 1:].contiguous()

    def forward(self) -> Tensor:
        """The loss."""
        return self._loss(*self._batch)

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


def _policy(name: str) -> Callable[[nn.Module], Callable[..., Tensor]]:
    def compile_(model: nn.Module) -> Callable[..., Tensor]:
        options = {"policy": name}
        return torch.compile(model, backend="nm_sparse", options=options, fullgraph=True)

    return compile_


def _inductor(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(model, backend="inductor", fullgraph=True)


#: Every variant that a section can measure. The eager masks do what the policy "full" does.
PROVIDERS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "inductor": _inductor,
    "full": _policy("full"),
    "activations": _policy("activations"),
    "gradients": _policy("gradients"),
    "weights": _policy("weights"),
    "dense": _policy("dense"),
    "eager-dense": lambda model: model,
    "eager-hooks": lambda model: use_eager_masks(model, "topk"),
    "eager-compare": lambda model: use_eager_masks(model, "compare"),
    "eager-hooks+inductor": lambda model: _inductor(use_eager_masks(model, "topk")),
}
