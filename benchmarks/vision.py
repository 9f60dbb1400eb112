"""Small vision networks that the training-step benchmark trains on 32x32 images.

The forward of each is the loss. They are what a laptop's CPU is used for: little arithmetic for
every element that a mask reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.models import ResidualBlock
from benchmarks.gpt import Block

CLASSES, PIXELS = 10, 32


@dataclass(frozen=True)
class Images:
    """A network's name and a step's batch; ``depth`` is what a benchmark's row calls ``x``."""

    network: str
    depth: int
    batch: int = 32

    def build(self) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """The network, from the current seed, and a batch: images [B, 3, 32, 32], classes [B]."""
        net = Classifier(NETWORKS[self.network](self.depth))
        images = torch.randn(self.batch, 3, PIXELS, PIXELS)
        return net, (images, torch.randint(CLASSES, (self.batch,)))

    def __str__(self) -> str:
        return f"{self.network} depth={self.depth} images={self.batch}x{PIXELS}x{PIXELS} float32"


class Classifier(nn.Module):
    """A network and its loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:  # [B, 3, H, W], [B]
        return F.cross_entropy(self.net(images), targets)


class ResNet(nn.Module):
    """ResNet for CIFAR (He et al. 2016): three widths, ``depth`` blocks of each."""

    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width * 2 ** (block // depth) for block in range(3 * depth)]
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(before, after, 1 if before == after else 2)
                for before, after in zip([width, *widths], widths, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, 32, 32] -> [B, classes]
        y = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(y.mean((2, 3)))


class ViT(nn.Module):
    """A vision transformer of width 192 (ViT-Tiny) on 64 patches of 4x4 pixels."""

    def __init__(self, depth: int, width: int = 192, heads: int = 3, patch: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.randn((PIXELS // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, 32, 32] -> [B, classes]
        y = self.embed(x).flatten(2).transpose(1, 2) + self.positions  # [B, patches, width]
        return self.head(self.norm(self.blocks(y)).mean(1))


class Inverted(nn.Module):
    """MobileNetV2's block: expand by 1x1, 3x3 in each channel, project by 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 6) -> None:
        super().__init__()
        inner = inputs * expand
        self.skips = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H/s, W/s]
        y = self.layers(x)
        return x + y if self.skips else y


class MobileNet(nn.Module):
    """Inverted residuals (MobileNetV2, Sandler et al. 2018) of four widths, ``depth`` of each."""

    def __init__(self, depth: int, widths: tuple[int, ...] = (16, 24, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU6()
        )
        outputs = [width for width in widths for _ in range(depth)]
        self.blocks = nn.Sequential(
            *(
                Inverted(before, after, 1 if before == after else 2)
                for before, after in zip([widths[0], *outputs], outputs, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, 32, 32] -> [B, classes]
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


NETWORKS = {"resnet": ResNet, "vit": ViT, "mobilenet": MobileNet}

FULL = {
    "resnet": Images("resnet", depth=3),
    "vit": Images("vit", depth=4),
    "mobilenet": Images("mobilenet", depth=2),
}
QUICK = {name: Images(name, depth=1, batch=2) for name in FULL}
