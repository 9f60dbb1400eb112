"""Random small networks of linear, conv, norm, activation, residual and attention layers."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = st.sampled_from([4, 6, 8, 12, 20])


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv, self.out = (nn.Linear(width, n * width) for n in (1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1)
        return self.out(torch.softmax(self.q(x) @ k.transpose(1, 2) / 3, -1) @ v)


class Conv(nn.Module):
    """A convolution over the tokens (1-D) or over tokens folded to a square (2-D)."""

    def __init__(self, width: int, out: int, kernel: int, groups: int, flat: bool) -> None:
        super().__init__()
        kind = nn.Conv1d if flat else nn.Conv2d
        self.conv = kind(width, out, kernel, padding=kernel // 2, groups=groups)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)
        h = self.conv(h) if self.flat else self.conv(h.unflatten(2, (3, 3))).flatten(2)
        return h.transpose(1, 2)


class Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, self.name)(x)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A network from [batch, 9 tokens, 8] to [batch, 9 tokens, any width], in float64."""
    width, layers = 8, []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["linear", "conv", "norm", "act", "residual", "attention"]))
        out = draw(WIDTHS)
        if kind == "linear":
            layers.append(nn.Linear(width, out, bias=draw(st.booleans())))
            width = out
        elif kind == "conv":
            groups = draw(st.sampled_from([1, 2, width]))
            out = out if groups < width else width
            kernel = draw(st.sampled_from([1, 3]))
            layers.append(Conv(width, out, kernel, groups, flat=draw(st.booleans())))
            width = out
        elif kind == "norm":
            layers.append(nn.LayerNorm(width))
        elif kind == "act":
            layers.append(Activation(draw(st.sampled_from(["gelu", "silu", "tanh", "softplus"]))))
        elif kind == "attention":
            layers.append(Residual(Attention(width)))
        else:
            layers.append(Residual(nn.Sequential(nn.Linear(width, out), nn.Linear(out, width))))
    return nn.Sequential(*layers).double()
