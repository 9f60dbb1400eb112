"""As many compilations as Inductor makes: of regions, and of experts in every form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.graph import GraphLowering
from torch._inductor.utils import fresh_cache

from tests.setups.steps import compiled

E, I, O = 3, 16, 24  # noqa: E741


class Region(nn.Module):
    """Two layers, compiled once for all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(I, O), nn.Linear(O, I)

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class OneThrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Region()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(self.block(x)))


class ThreeOnce(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(Region() for _ in range(3)))


class Experts(nn.Module):
    """Rows in the order of their experts; how many each has is data."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(I, E)
        self.weight = nn.Parameter(torch.randn(E, I, O, dtype=self.dtype) / 4)

    def forward(self, x: Tensor) -> Tensor:
        expert, order = self.router(x).argmax(-1).sort()
        offsets = (expert[:, None] == torch.arange(E)).sum(0).cumsum(0).int()
        return self.multiply(x[order].to(self.dtype), offsets).float()

    def multiply(self, x: Tensor, offsets: Tensor) -> Tensor:
        raise NotImplementedError


class Grouped(Experts):
    dtype = torch.bfloat16

    def multiply(self, x: Tensor, offsets: Tensor) -> Tensor:
        return F.grouped_mm(x, self.weight, offs=offsets)


class Fallback(Experts):
    def multiply(self, x: Tensor, offsets: Tensor) -> Tensor:
        return torch.ops.transformers.grouped_mm_fallback(x, self.weight, offsets)


class Eager(Experts):
    """A product for each expert, of as many rows as it has: Dynamo breaks the graph there."""

    def forward(self, x: Tensor) -> Tensor:
        expert, out = self.router(x).argmax(-1), x.new_zeros(len(x), O)
        for number in range(E):
            (rows,) = torch.where(expert == number)
            out = out.index_add(0, rows, x[rows] @ self.weight[number])
        return out


def compilations(
    make: Callable[[], nn.Module], policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, int]]:
    """After each of three steps, the last with more rows: (graphs of Dynamo, of Inductor)."""
    lowered, run = [], GraphLowering.__init__

    def count(self: GraphLowering, *args: object, **keys: object) -> None:
        lowered.append(self)
        run(self, *args, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(GraphLowering, "__init__", count)
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    made = []
    with fresh_cache():
        step = compiled(make(), policy)
        for rows in (12, 12, 20):
            step(torch.randn(rows, I, requires_grad=True)).sum().backward()
            made.append((counters["stats"]["unique_graphs"], len(lowered)))
    monkeypatch.undo()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("make", [OneThrice, ThreeOnce, Grouped, Fallback, Eager])
@pytest.mark.filterwarnings("ignore::nmcompile.errors.NMWarning")
def test_as_many_compilations_as_inductor(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is Fallback:
        pytest.importorskip("transformers.integrations.moe", reason="its operator is called")
    pruned, inductor = (compilations(make, p, monkeypatch) for p in ("full", None))
    assert pruned == inductor
    assert pruned[0] == pruned[1], "the second step compiled"
    if make in (OneThrice, ThreeOnce):
        # Forward and backward, and one graph in each for all three calls.
        assert pruned[0] == (1, 4)
