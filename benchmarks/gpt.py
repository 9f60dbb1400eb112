"""The language model that the training-step benchmark trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a step."""

    width: int = 512
    depth: int = 3
    heads: int = 8
    context: int = 256
    batch: int = 8

    def build(self) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """The network, and a batch: tokens [B, C], and the ones that follow each."""
        net = GPT(self)
        bytes_ = torch.randint(VOCABULARY, (self.batch, self.context + 1))
        return net, (bytes_[:, :-1].contiguous(), bytes_[:, 1:].contiguous())

    def __str__(self) -> str:
        return (
            f"gpt width={self.width} depth={self.depth} heads={self.heads} "
            f"tokens={self.batch}x{self.context} float32"
        )


FULL = Shape()
QUICK = Shape(width=64, depth=1, heads=2, context=32, batch=2)


class Block(nn.Module):
    """Pre-LayerNorm attention and MLP."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, C, W]
        b, c, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, c, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, c, w))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A byte-level language model; its forward is the loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, shape.width)
        self.positions = nn.Parameter(torch.randn(shape.context, shape.width) * 0.02)
        self.blocks = nn.Sequential(
            *(Block(shape.width, shape.heads, True) for _ in range(shape.depth))
        )
        self.norm = nn.LayerNorm(shape.width)
        self.lm_head = nn.Linear(shape.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # [B, C], [B, C]
        x = self.blocks(self.tokens(tokens) + self.positions)
        return F.cross_entropy(self.lm_head(self.norm(x)).flatten(0, 1), targets.flatten())
