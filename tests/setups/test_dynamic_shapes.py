"""Batch and sequence lengths that vary: as few compilations as Inductor makes, right at any size.

The sizes are those at which a block of four is cut off, a batch of one, and a length of one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import nmcompile
from nmcompile import Policy, Rule
from tests.end_to_end.test_identity import blocks_kept
from tests.setups.steps import MASKS, MSE, assert_close, compiled, eager_step, one_step


class Tokens(nn.Module):
    """[batch, length, 16], with a softmax over the length between the two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8).double(), nn.Linear(8, 16).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.first(x), 1))


def marked(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    for dim in dims:
        torch._dynamo.mark_dynamic(x, dim)
    return x


def graphs_made(make: Any, policy: Any, batches: list[Tensor], **keys: Any) -> list[int]:
    """The number of graphs compiled so far after each batch; the results are checked on the way."""
    torch._dynamo.reset()
    torch.manual_seed(2)
    model = make()
    run, made = compiled(model, policy, **keys), []
    counters.clear()
    for x in batches:
        found = one_step(run, model, x)
        made.append(counters["stats"]["unique_graphs"])
        assert_close(found, eager_step(model, x, masks=MASKS if policy is MSE else {}))
    return made


HOW: dict[str, tuple[dict[str, Any], tuple[int, ...], list[tuple[int, int]]]] = {
    "automatic": ({}, (), [(4, 8), (6, 8), (5, 7), (7, 6), (1, 9)]),
    "dynamic": ({"dynamic": True}, (), [(4, 8), (5, 1), (5, 7)]),
    "marked": ({}, (0, 1), [(4, 8), (5, 7), (8, 16)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_as_many_compilations_as_inductor(how: str) -> None:
    keys, dims, shapes = HOW[how]
    batches = [marked(torch.randn(*s, 16, dtype=torch.float64), dims) for s in shapes]
    pruned, inductor = (graphs_made(Tokens, p, batches, **keys) for p in (MSE, None))
    assert pruned == inductor
    assert pruned[-1] < len(shapes), "the sizes were not dynamic"


@pytest.mark.slow
def test_a_width_that_once_equals_another_is_no_other_graph() -> None:
    """A supernet takes a slice of its weight: 12 inputs of 12 outputs are nothing special."""
    layer, made = nn.Linear(16, 16), {}

    def sliced(x: Tensor, k: int) -> Tensor:
        return nn.functional.linear(x[:, :k], layer.weight[:12, :k], layer.bias[:12])

    for backend in ("inductor", "nm_sparse"):
        torch._dynamo.reset()
        counters.clear()
        run = torch.compile(sliced, backend=backend)
        for k in (8, 12, 16, 6):
            run(torch.randn(6, 16), k).sum().backward()
        made[backend] = counters["stats"]["unique_graphs"]
    assert made["nm_sparse"] == made["inductor"]


def grouped() -> nn.Module:
    """Six channels a group: blocks of four end inside, so that operands are split by groups."""
    layers = nn.Conv2d(12, 12, 3, groups=2), nn.Tanh(), nn.Conv2d(12, 8, 1)
    return nn.Sequential(*layers).double()


@pytest.mark.slow
def test_images_in_batches_of_every_size() -> None:
    # Their height and width are compiled as they are, by Inductor as well.
    images = [torch.randn(n, 12, 5, 4, dtype=torch.float64) for n in (2, 3)]
    pruned, inductor = (graphs_made(grouped, p, images, dynamic=True) for p in (MSE, None))
    assert pruned == inductor
    assert pruned == [1, 1]


def test_mvue_at_every_length() -> None:
    layer, dy = nn.Linear(16, 8, bias=False), torch.randn(16, 8)
    rule = Rule(role="wgrad", prune="gradient", format="2:4")
    run = compiled(layer, Policy(rules=[rule]), dynamic=True)
    counters.clear()
    steps = 300
    for tokens in (5, 9, 16):
        part, total = dy[:tokens], torch.zeros(tokens, 8, dtype=torch.float64)
        for _ in range(steps):
            layer.weight.grad = None
            run(torch.eye(16)[:tokens]).backward(part)
            sample = layer.weight.grad.T[:tokens]
            assert (blocks_kept(sample, 4, 0) <= 2).all()
            total += sample
        # A kept value is dy / p, so the variance of one draw is dy^2 (1/p - 1).
        p = nmcompile.functional.inclusion_probability(part, "2:4", 0)
        error = (part**2 * (1 / p - 1) / steps).sqrt()
        assert ((total / steps - part).abs() <= 5 * error + 1e-5).all()
    assert counters["stats"]["unique_graphs"] == 1
    wgrad = next(s for s in nmcompile.last_report().sites if s.role == "wgrad")
    assert not wgrad.sizes[-1].isdigit(), "the reduction of wgrad was compiled for one length"
