"""``explain(target=...)`` on the CPU decides what a model gets that is compiled on that GPU.

Needs the GPU, or one that only logs what it is asked to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import nmcompile
from nmcompile import Policy, Report

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from nmcompile.execution.targets import target_of

pytestmark = pytest.mark.slow
BF16 = {"dtype": torch.bfloat16}


class Attention(nn.Module):
    def __init__(self, width: int, narrow: int, bias: bool) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=bias, **BF16)
        self.k, self.v = (nn.Linear(width, narrow, bias=bias, **BF16) for _ in range(2))
        self.o = nn.Linear(width, width, bias=bias, **BF16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            f(x).view(batch, tokens, -1, 64).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape != k.shape)
        return self.o(a.transpose(1, 2).reshape(x.shape))


class Llama(nn.Module):
    """RMS norms, grouped queries, SwiGLU, no bias."""

    def __init__(self, width: int = 2048, hidden: int = 7168) -> None:
        super().__init__()
        self.attention = Attention(width, width // 4, bias=False)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False, **BF16) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False, **BF16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(F.rms_norm(x, x.shape[-1:]))
        h = F.rms_norm(x, x.shape[-1:])
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Gpt2(nn.Module):
    """Layer norms, biases, GELU."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.attention = Attention(width, width, bias=True)
        self.fc, self.proj = (
            nn.Linear(width, 4 * width, **BF16),
            nn.Linear(4 * width, width, **BF16),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(F.layer_norm(x, x.shape[-1:]))
        h = F.layer_norm(x, x.shape[-1:])
        return x + self.proj(F.gelu(self.fc(h), approximate="tanh"))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norms, channels-last."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        inner = width // 4
        self.a, self.c = nn.Conv2d(width, inner, 1, **BF16), nn.Conv2d(inner, width, 1, **BF16)
        self.b = nn.Conv2d(inner, inner, 3, padding=1, bias=False, **BF16)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, **BF16) for n in (inner, inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer, norm in zip((self.a, self.b, self.c), self.norms, strict=True):
            y = norm(layer(y)).relu()
        return x + y


def tokens(width: int) -> torch.Tensor:
    return torch.empty(4, 1024, width, **BF16)


def images(channels: int) -> torch.Tensor:
    return torch.empty(64, channels, 14, 14, **BF16).to(memory_format=torch.channels_last)


MODELS: dict[str, Any] = {
    "llama": lambda: (nn.Sequential(Llama(), Llama()), tokens(2048)),
    "gpt2": lambda: (nn.Sequential(Gpt2(), Gpt2()), tokens(1024)),
    "resnet": lambda: (Bottleneck(), images(2048)),
}
#: A convolution of this size gains nothing: let it run sparse all the same.
MARGINS = {"resnet": 0.3}


def decisions(report: Report) -> dict[Any, Any]:
    """By module and role: what was decided, from which figures, together with what."""
    sites = [(graph, site) for graph in report.graphs for site in graph.sites]
    names = {id(s): (s.module, str(s.role)) for _, s in sites}
    found = {}
    for graph, s in sites:
        row = next((row for row in graph.units if row.unit == s.unit), None)
        unit = [names[id(other)] for other in graph.sites if row and other.site in row.sites]
        times = [t and round(t, 3) for t in (s.dense_us, s.sparse_us)]
        codes = [r.code for r in s.reasons]
        found[names[id(s)]] = (s.execution, s.layout, s.sizes, codes, times, sorted(unit))
    return found


@contextmanager
def only_logged() -> Iterator[None]:
    """A GPU that only logs compiles a convolution, and has no cuDNN to run it."""
    try:
        yield
    except RuntimeError:
        if "(null GPU)" not in torch.cuda.get_device_name():
            raise


@pytest.mark.parametrize("recipe", ["full", "full-exact", "weights"])
@pytest.mark.parametrize("name", MODELS)
def test_decisions_are_those_of_the_gpu(name: str, recipe: str) -> None:
    place = target_of("cuda:0").name
    policy = Policy(extends=recipe, margin=MARGINS.get(name, 1.05), fallback="simulate")
    with FakeTensorMode():
        model, x = MODELS[name]()
        planned = nmcompile.explain(model, x.requires_grad_(), policy=policy, target=place)
    model, x = MODELS[name]()
    model, x = model.cuda(), x.cuda().requires_grad_()
    torch._dynamo.reset()
    with only_logged():
        torch.compile(model, backend=nmcompile.nm_sparse, options={"policy": policy})(x)
    compiled = nmcompile.last_report()
    assert decisions(planned) == decisions(compiled)
    assert {s.execution for s in planned.sites} >= {"sparse"}
