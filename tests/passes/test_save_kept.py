"""What a masked gradient alone reads is saved at the kept places; what others read is not touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nmcompile
from nmcompile import Policy

SPARSE_EXACT = Policy(extends="full-exact", execution="sparse")


class Block(nn.Module):
    """A pre-norm transformer block: GPT's, or Llama's with grouped keys and SwiGLU."""

    def __init__(self, llama: bool, width: int = 64, heads: int = 8) -> None:
        super().__init__()
        groups = 2 if llama else heads
        self.heads, self.groups, self.llama = heads, groups, llama
        hidden = 3 * width + width // 2 if llama else 4 * width
        norm = nn.RMSNorm if llama else nn.LayerNorm
        self.norm1, self.norm2 = norm(width), norm(width)
        self.q = nn.Linear(width, width, bias=not llama)
        self.kv = nn.Linear(width, 2 * width // heads * groups, bias=not llama)
        self.o = nn.Linear(width, width, bias=not llama)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gate = nn.Linear(width, hidden) if llama else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, w = x.shape
        y = self.norm1(x)
        q = self.q(y).view(b, t, self.heads, -1).transpose(1, 2)
        kv = self.kv(y).view(b, t, 2, self.groups, -1).permute(2, 0, 3, 1, 4)
        k, v = kv.repeat_interleave(self.heads // self.groups, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, w))
        y = self.norm2(x)
        hidden = F.silu(self.gate(y)) * self.up(y) if self.gate else F.gelu(self.up(y))
        return x + self.down(hidden)


def saved_bytes(model: Callable[..., Any], x: torch.Tensor, policy: Any) -> int:
    return sum(s.bytes for s in nmcompile.explain(model, x, policy=policy).saved)


@pytest.mark.parametrize("llama", [False, True])
def test_a_transformer_block_saves_at_most_070_of_dense(llama: bool) -> None:
    block = Block(llama).bfloat16()
    x = torch.randn(2, 64, 64).bfloat16().requires_grad_()
    inner = nn.Sequential(nn.Tanh(), block)  # so that the block's input is no graph input
    dense = saved_bytes(inner, x, "dense")
    assert saved_bytes(inner, x, Policy(extends="full", execution="sparse")) <= dense
    assert saved_bytes(inner, x, SPARSE_EXACT) <= 0.70 * dense


class Act(nn.Module):
    """Two linear layers around something elementwise."""

    def __init__(self, act: Callable[[torch.Tensor], Any], extra: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32)
        self.act, self.extra = act, extra

    def forward(self, x: torch.Tensor) -> Any:
        p = self.a(x)
        y = self.b(self.act(p))
        return (y, p.square().sum()) if self.extra else y


def kept(model: nn.Module) -> int:
    report = nmcompile.explain(model, torch.randn(16, 32), policy=SPARSE_EXACT)
    return sum(graph.after.count("nm.compress_like") for graph in report.graphs)


def saved_for(act: Callable[[torch.Tensor], Any]) -> int:
    """Bytes of two-dimensional tensors saved under the name of the middle layer's size."""
    report = nmcompile.explain(Act(act), torch.randn(64, 32), policy=SPARSE_EXACT)
    return sum(s.bytes for s in report.saved)


@pytest.mark.parametrize("act", [F.gelu, F.silu, lambda x: F.silu(x) * x])
def test_activations_are_saved_at_the_kept_places(act: Callable[..., Any]) -> None:
    assert kept(Act(act)) == 1
    # Both layers' operands, packed: float32 values and metadata, of 64 columns with the padding.
    assert saved_for(act) == 2 * 4 * 64 * (64 // 2 + 2)


def test_a_derivative_that_reads_the_result_reads_the_packed_operand() -> None:
    assert kept(Act(torch.tanh)) == 0
    assert saved_for(torch.tanh) == saved_for(F.gelu)


def test_another_reader_of_the_producer_prevents_it() -> None:
    assert kept(Act(F.gelu, extra=True)) == 0


def test_a_derivative_that_is_infinite_at_zero_prevents_it() -> None:
    assert kept(Act(lambda x: x.abs().sqrt())) == 0


def test_straight_through_products_and_simulated_ones_keep_their_tensors() -> None:
    for policy in (Policy(extends="full", execution="sparse"), "full-exact"):
        report = nmcompile.explain(Act(F.gelu), torch.randn(16, 32), policy=policy)
        assert not any("compress_like" in graph.after for graph in report.graphs)


def test_a_reduction_of_the_producer_is_no_elementwise_reader() -> None:
    assert kept(Act(lambda x: F.gelu(x / x.norm(dim=-1, keepdim=True)))) == 0
