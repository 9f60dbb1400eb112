"""The networks of the accuracy study: ordinary PyTorch, nothing in them knows of sparsity.

Every reduction dimension of their products is a multiple of 4, except where the data dictates
otherwise: the input channels of the ResNet, and the ten classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; a strided 1x1 convolution carries the skip where the shape changes.

    Without ``norm`` there is no batch norm, and the convolutions have biases.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not norm)
        self.norm1 = _norm(outputs, norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=not norm)
        self.norm2 = _norm(outputs, norm)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=not norm), _norm(outputs, norm)
            )

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H/s, W/s]
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class ResNet(nn.Module):
    """A residual network for small images: each new width halves the resolution."""

    def __init__(
        self,
        channels: int = 1,
        norm: bool = True,
        widths: tuple[int, ...] = (32, 64),
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=not norm)
        self.norm = _norm(widths[0], norm)
        before = (widths[0], *widths)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(i, o, 1 if i == o else 2, norm)
                for i, o in zip(before, widths, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W] -> [B, classes]
        y = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(y.mean((2, 3)))


def _norm(width: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(width) if norm else nn.Identity()


class TransformerBlock(nn.Module):
    """Pre-norm attention and a GELU MLP of four times the width."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.project(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer for small images, in patches of ``patch`` pixels (height, width)."""

    def __init__(
        self,
        image: tuple[int, int, int] = (1, 8, 8),
        patch: tuple[int, int] = (2, 4),
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        channels, height, across = image
        self.patch = patch
        self.embed = nn.Linear(channels * patch[0] * patch[1], width)
        patches = (height // patch[0]) * (across // patch[1])
        self.position = nn.Parameter(torch.empty(patches, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        tiles = x.unflatten(2, (-1, self.patch[0])).unflatten(4, (-1, self.patch[1]))
        patches = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)  # [B, patch, pixel]
        y = self.blocks(self.embed(patches) + self.position)
        return self.head(self.norm(y).mean(1))


class GPT(nn.Module):
    """A decoder-only language model on bytes."""

    def __init__(
        self, width: int = 128, depth: int = 3, heads: int = 4, context: int = 64, words: int = 256
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, context] -> [B, context, words]
        y = self.blocks(self.embed(x) + self.position)
        return self.lm_head(self.norm(y))


class Objective(nn.Module):
    """A network and its loss: what is compiled, so that the gradient of the loss is seen too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.net(x), targets)


class Logits(nn.Module):
    """A network as it is inside of ``Objective``: a policy's paths are the same in both."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all positions, in nats. ``logits`` [..., classes], ``targets`` [...]."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def initialise(net: nn.Module, seed: int) -> None:
    """Draw all parameters anew, in place, and reset all buffers: compiled code stays valid."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for module in net.modules():  # what was just drawn is scaled: parents come before children
        if isinstance(module, TransformerBlock):
            with torch.no_grad():  # a residual branch starts small
                module.project.weight.mul_(0.3)
                module.down.weight.mul_(0.3)
        elif isinstance(module, (ViT, GPT)):
            nn.init.normal_(module.position, std=1.0)
