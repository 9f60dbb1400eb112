"""Models whose graphs hold graphs: regions, branches and loops.

In eager mode each is plain Python, without any of PyTorch's higher-order operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.functions import HIDDEN, WIDTH, language_model

PARTS = 3
#: Inductor makes a loop of each of them whose end is a number in a tensor.
_LOOPS = {"capture_scalar_outputs": True}


class Unit(nn.Module):
    """A feed-forward unit with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


class Region(Unit):
    """The same, compiled once for all of its modules."""

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Branch(nn.Module):
    """Two layers, of which the data choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.yes, self.no = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        yes: Callable[[Tensor], Tensor] = lambda x: self.yes(x).tanh()  # noqa: E731
        no: Callable[[Tensor], Tensor] = lambda x: self.no(x).relu()  # noqa: E731
        is_long = x.square().sum() > 0
        if torch.compiler.is_compiling():
            return x + torch.cond(is_long, yes, no, (x,))
        return x + (yes(x) if is_long else no(x))


class Map(nn.Module):
    """Rows in a few parts, each through the unit."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = Unit()

    def forward(self, x: Tensor) -> Tensor:
        parts = x.view(PARTS, -1, WIDTH)
        if torch.compiler.is_compiling():
            mapped: Tensor = map_over(self.unit, parts)
        else:
            mapped = torch.stack([self.unit(part) for part in parts])
        return mapped.view_as(x)


class Scan(Map):
    """A state that goes through the unit with every part."""

    def forward(self, x: Tensor) -> Tensor:
        def step(state: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
            state = self.unit(state)
            return state, state + part

        parts = x.view(PARTS, -1, WIDTH)
        state = parts[0].sin()
        if torch.compiler.is_compiling():
            return scan(step, state, parts)[1].view_as(x)  # type: ignore[no-any-return]
        results = []
        for part in parts:
            state, result = step(state, part)
            results.append(result)
        return torch.stack(results).view_as(x)


class While(Map):
    """The unit as often as a tensor says."""

    def forward(self, x: Tensor) -> Tensor:
        number = torch.tensor(0)
        if torch.compiler.is_compiling():
            return while_loop(  # type: ignore[no-any-return]
                lambda i, x: i < PARTS, lambda i, x: (i + 1, self.unit(x)), (number, x)
            )[1]
        while number < PARTS:
            number, x = number + 1, self.unit(x)
        return x


def _entry(name: str, unit: Callable[[], nn.Module], note: str, **fields: Any) -> Entry:
    make, loss = language_model(unit, length=24)
    return Entry(name, "graphs in graphs", make, loss, note, **fields)


ENTRIES = (
    _entry(
        "nested-regions",
        lambda: nn.Sequential(Region(), Region()),
        "`torch.compiler.nested_compile_region`: two blocks, one graph",
    ),
    _entry(
        "cond",
        Branch,
        "`torch.cond`: the branch that the batch does not take is planned and not counted here",
        untaken=("unit.no",),
    ),
    _entry("map", Map, "`map`: one graph, as often as there are slices", dynamo=_LOOPS),
    _entry(
        "scan",
        Scan,
        "`scan`: PyTorch traces its body by itself, so that its rows name the module around it",
        traced_again=("unit",),
        dynamo=_LOOPS,
    ),
    _entry(
        "while-loop",
        While,
        "`while_loop`: how often it runs is data, and its FLOPs are those of this batch",
        iterations=PARTS,
        dynamo=_LOOPS,
    ),
)
