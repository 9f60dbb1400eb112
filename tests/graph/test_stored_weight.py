"""Which parameter a pruned weight is, in the parameter's own dimensions, and who else reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.report.rows import WeightRow

POLICY = Policy(
    rules=[
        Rule(module="dense", dense=True),
        Rule(role=("fprop", "dgrad"), prune="weight", format="2:4", method="transposable"),
    ]
)


class Net(nn.Module):
    """One weight, used as ``forward`` says, beside a layer that stays dense."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.w, self.g = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.ones(shape[0], 1))
        self.dense, self._forward = nn.Linear(8, 8), forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def row(forward: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...], x: Tensor) -> WeightRow:
    report = nmcompile.explain(Net(forward, shape), x, policy=POLICY)
    found = [s.weight for s in report.sites if s.role == "fprop" and s.weight is not None]
    assert all(s.weight is None for s in report.sites if s.role != "fprop")
    return found[0]


F = nn.functional
X = torch.randn(4, 8)
IMAGE = torch.randn(2, 8, 4, 4)


@pytest.mark.parametrize(
    ("forward", "shape", "x", "dims", "tiles"),
    [
        (lambda m, x: F.linear(x, m.w), (12, 8), X, (1,), (1, 0)),
        (lambda m, x: x @ m.w, (8, 12), X, (0,), (0, 1)),
        (lambda m, x: F.linear(x[None], m.w), (12, 8), X, (1,), (1, 0)),
        (lambda m, x: F.linear(x.double(), m.w.double()), (12, 8), X, (1,), (1, 0)),
        (lambda m, x: F.conv2d(x, m.w, groups=2), (12, 4, 1, 1), IMAGE, (1,), (0, 1)),
        (lambda m, x: F.conv_transpose2d(x, m.w), (8, 12, 3, 3), IMAGE, (0,), (0, 1)),
    ],
)
def test_a_parameter_as_it_lies(
    forward: Any, shape: tuple[int, ...], x: Tensor, dims: Any, tiles: Any
) -> None:
    found = row(forward, shape, x)
    assert (found.names, found.dims, found.tile_dims, found.obstacle) == (("w",), dims, tiles, "")


@pytest.mark.parametrize(
    ("forward", "shape", "words"),
    [
        (lambda m, x: F.linear(x, m.g * m.w), (12, 8), "it is computed by aten.mul"),
        (lambda m, x: F.linear(x, m.w[:8]), (12, 8), "it is computed by aten.slice"),
        (lambda m, x: F.linear(x, m.w.view(12, 8)), (8, 12), "it is read in another shape"),
        (lambda m, x: F.linear(x, m.w) + m.w.sum(), (12, 8), "also read as it is, by aten.sum"),
        (
            lambda m, x: F.linear(x, m.w) @ m.dense(m.w),
            (12, 8),
            "also read as it is, by aten.addmm in dense",
        ),
        (
            lambda m, x: F.linear(F.embedding(torch.arange(4), m.w), m.w),
            (12, 8),
            "also read as it is, by aten.embedding",
        ),
    ],
)
def test_what_cannot_be_written_back(forward: Any, shape: tuple[int, ...], words: str) -> None:
    assert words in row(forward, shape, X).obstacle


def test_two_products_under_one_mask_are_no_obstacle() -> None:
    found = row(lambda m, x: F.linear(F.linear(x, m.w), m.w.t()), (12, 8), X)
    assert found.obstacle == ""


def test_blocks_that_share_a_graph_have_a_name_each() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    model = nn.Sequential(*(Block() for _ in range(3)))
    report = nmcompile.explain(model, X, policy=POLICY, each="*")
    # The first block's input needs no gradient: a graph of its own.
    found = {s.weight.names for s in report.sites if s.weight is not None}
    assert found == {("0.fc.weight", "1.fc.weight", "2.fc.weight")}
