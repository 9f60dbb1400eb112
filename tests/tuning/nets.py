"""Small models that return their loss, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """A convolution with a norm, then two linear layers; the loss of a classification."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.up = nn.Linear(8, 16)
        self.head = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.conv(x))).mean((2, 3))
        return F.cross_entropy(self.head(self.drop(F.gelu(self.up(x)))), y)


class Blocks(nn.Module):
    """Residual blocks of two linear layers."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width)})
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](F.gelu(block["up"](x)))
        return F.cross_entropy(self.head(x), y)


def images(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches for ``Classifier``."""
    return [(torch.randn(6, 4, 5, 5), torch.randint(8, (6,))) for _ in range(count)]


def vectors(count: int = 3, width: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Batches for ``Blocks``."""
    return [(torch.randn(24, width), torch.randint(8, (24,))) for _ in range(count)]
