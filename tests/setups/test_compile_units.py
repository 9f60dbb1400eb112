"""A whole model, a model in place, and blocks one by one: the same numbers, shared code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import nmcompile
from tests.end_to_end.eager_oracle import Oracle
from tests.setups.steps import MASKS, MSE, assert_close, assert_equal, mlp, one_step


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16, dtype=torch.float64), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def whole(model: Model, **keys: Any) -> Any:
    return torch.compile(model, **keys)


def in_place(model: Model, **keys: Any) -> Any:
    model.compile(**keys)
    return model


def blocks_in_place(model: Model, **keys: Any) -> Any:
    for block in model.blocks:
        block.compile(**keys)
    return model


def blocks_replaced(model: Model, **keys: Any) -> Any:
    model.blocks = nn.ModuleList(torch.compile(block, **keys) for block in model.blocks)
    return model


def simulated(model: Model, x: Tensor, head: bool) -> list[Tensor]:
    """One step by the independent simulation, with or without masks in the head."""

    def call(x: Tensor) -> Tensor:
        with Oracle(MASKS):
            for block in model.blocks:
                x = block(x)
        with Oracle(MASKS if head else {}):
            return model.head(x)

    return one_step(call, model, x)


IN_BLOCK = ["mlp.0", "mlp.2"]
IN_MODEL = [*(f"blocks.{i}.{name}" for i in range(3) for name in IN_BLOCK), "head"]
#: Whether the head is compiled, the number of graphs, and the paths that the report of the newest
#: torch.compile call shows. The first block's input needs no gradient, those of the others do:
#: two graphs for three blocks, each reported by the call that needed it.
UNITS: dict[Callable[..., Any], tuple[bool, int, list[str]]] = {
    whole: (True, 1, IN_MODEL),
    in_place: (True, 1, IN_MODEL),
    blocks_in_place: (False, 2, IN_BLOCK),
    blocks_replaced: (False, 2, IN_BLOCK),
}


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_gradients_graphs_and_paths(unit: Callable[..., Any]) -> None:
    head, graphs, paths = UNITS[unit]
    model, x = Model(), torch.randn(8, 16, dtype=torch.float64)
    expected = simulated(model, x, head)
    run = unit(model, backend="nm_sparse", options={"policy": MSE})
    counters.clear()
    for _ in range(2):
        assert_close(one_step(run, model, x), expected)
    assert counters["stats"]["unique_graphs"] == graphs
    (graph,) = nmcompile.last_report().graphs
    assert sorted({s.module for s in graph.sites}) == paths


@pytest.mark.slow
@pytest.mark.parametrize("unit", [in_place, blocks_in_place])
def test_dense_is_inductor(unit: Callable[..., Any]) -> None:
    x, results = torch.randn(8, 16, dtype=torch.float64), []
    original = Model()
    for keys in ({"backend": "nm_sparse", "options": {"policy": "dense"}}, {"backend": "inductor"}):
        torch._dynamo.reset()
        model = copy.deepcopy(original)
        results.append(one_step(unit(model, **keys), model, x))
    assert_equal(*results)
