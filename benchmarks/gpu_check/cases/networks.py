"""The networks of section ``training``: a Llama-style stack, GPT-2, a ResNet-50.

``forward(inputs, labels)`` is the loss. Everything is written with ``torch.nn`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaShape:
    """Llama 3 8B's layers; the vocabulary is small, so that the layers decide."""

    width: int = 4096
    hidden: int = 14336
    heads: int = 32
    kv_heads: int = 8
    depth: int = 2
    vocabulary: int = 8192
    batch: int = 4
    context: int = 4096


@dataclass(frozen=True)
class GPT2Shape:
    """GPT-2 medium, its vocabulary padded to a multiple of 128."""

    width: int = 1024
    heads: int = 16
    depth: int = 24
    vocabulary: int = 50304
    batch: int = 8
    context: int = 1024


@dataclass(frozen=True)
class ResNetShape:
    """ResNet-50."""

    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    classes: int = 1000
    batch: int = 128
    size: int = 224


class LlamaBlock(nn.Module):
    """RMSNorm, grouped-query attention with rotary positions, SwiGLU."""

    def __init__(self, s: LlamaShape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head = s.heads, s.kv_heads, s.width // s.heads
        self.norm1, self.norm2 = nn.RMSNorm(s.width, eps=1e-5), nn.RMSNorm(s.width, eps=1e-5)
        narrow = s.kv_heads * self.head
        self.q, self.o = (nn.Linear(s.width, s.width, bias=False) for _ in "qo")
        self.k, self.v = (nn.Linear(s.width, narrow, bias=False) for _ in "kv")
        self.gate, self.up = (nn.Linear(s.width, s.hidden, bias=False) for _ in "gu")
        self.down = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, C, W], [C, head]
        x = x + self.attention(self.norm1(x), cos, sin)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, c, _ = x.shape
        q, k, v = (
            layer(x).view(b, c, -1, self.head).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        repeats = self.heads // self.kv_heads
        k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, c, -1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Llama(nn.Module):
    """Embedding, blocks, norm, head, cross entropy."""

    def __init__(self, s: LlamaShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(s.vocabulary, s.width)
        self.blocks = nn.ModuleList(LlamaBlock(s) for _ in range(s.depth))
        self.norm = nn.RMSNorm(s.width, eps=1e-5)
        self.lm_head = nn.Linear(s.width, s.vocabulary, bias=False)
        head = s.width // s.heads
        rates = 500000.0 ** (-torch.arange(0, head, 2) / head)
        angles = torch.outer(torch.arange(s.context), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # [B, C], [B, C]
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.lm_head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class GPT2Block(nn.Module):
    """LayerNorm, attention, GELU."""

    def __init__(self, s: GPT2Shape) -> None:
        super().__init__()
        self.heads = s.heads
        self.norm1, self.norm2 = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.qkv, self.out = nn.Linear(s.width, 3 * s.width), nn.Linear(s.width, s.width)
        self.up, self.down = nn.Linear(s.width, 4 * s.width), nn.Linear(4 * s.width, s.width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, W]
        b, c, w = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, c, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, c, w))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Learned positions, blocks, head, cross entropy."""

    def __init__(self, s: GPT2Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(s.vocabulary, s.width)
        self.positions = nn.Parameter(torch.zeros(s.context, s.width))
        self.blocks = nn.ModuleList(GPT2Block(s) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width)
        self.lm_head = nn.Linear(s.width, s.vocabulary, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # [B, C], [B, C]
        x = self.tokens(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W]
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, four stages of bottlenecks, pooling, classifier, cross entropy."""

    def __init__(self, s: ResNetShape) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, s.width, 7, 2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(s.width)
        blocks, inputs = [], s.width
        for stage, count in enumerate(s.blocks):
            width = s.width * 2**stage
            for i in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if i == 0 and stage > 0 else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, s.classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # [B, 3, H, W], [B]
        x = F.max_pool2d(F.relu(self.norm(self.stem(images))), 3, 2, padding=1)
        x = self.fc(self.blocks(x).mean((2, 3)))
        return F.cross_entropy(x.float(), labels)


Batch = tuple[Tensor, Tensor]


def llama(s: LlamaShape, device: str) -> tuple[nn.Module, Batch]:
    """A model in bfloat16 and a batch; the same every time."""
    return _language_model(Llama, s, device)


def gpt2(s: GPT2Shape, device: str) -> tuple[nn.Module, Batch]:
    """A model in bfloat16 and a batch; the same every time."""
    return _language_model(GPT2, s, device)


def _language_model(make: Callable, s: LlamaShape | GPT2Shape, device: str):
    torch.manual_seed(0)
    with torch.device(device):
        model = make(s).to(torch.bfloat16)
        for p in model.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        words = torch.randint(s.vocabulary, (s.batch, s.context + 1))
    return model, (words[:, :-1].contiguous(), words[:, 1:].contiguous())


def resnet(s: ResNetShape, device: str) -> tuple[nn.Module, Batch]:
    """Convolutions in bfloat16 and channels-last, batch norms in float32; the same every time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = ResNet(s).to(torch.bfloat16, memory_format=torch.channels_last)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
        images = torch.randn(s.batch, 3, s.size, s.size, dtype=torch.bfloat16)
        labels = torch.randint(s.classes, (s.batch,))
    return model, (images.contiguous(memory_format=torch.channels_last), labels)
