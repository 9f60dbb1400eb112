"""Graphs that call graphs, written by hand, and models whose graphs do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from nmcompile.gemm import OperandKind

ops = torch.ops.higher_order


def calling(write: Callable[[fx.Graph, dict[str, fx.Node]], Any], **held: Any) -> fx.GraphModule:
    """A graph with inputs x, w and d; ``held`` are the functions or graphs that it calls."""
    graph, bodies = fx.Graph(), {}
    for name, body in held.items():
        bodies[name] = body if isinstance(body, fx.GraphModule) else fx.symbolic_trace(body)
    nodes = {name: graph.placeholder(name) for name in ("x", "w", "d")}
    nodes |= {name: graph.get_attr(name) for name in held}
    graph.output(write(graph, nodes))
    return fx.GraphModule(bodies, graph)


def kind_of_input(node: fx.Node) -> OperandKind | None:
    """x is an activation, w a weight, d a gradient."""
    kinds = (OperandKind.ACTIVATION, OperandKind.WEIGHT, OperandKind.GRADIENT)
    return dict(zip("xwd", kinds, strict=True)).get(str(node.target))


class Plain(nn.Module):
    """What ``Block`` is without being a region."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


class Block(Plain):
    """A region, if it is called more than once."""

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Branch(nn.Module):
    """Two layers, of which one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, other = (lambda x: self.a(x).tanh()), (lambda x: self.b(x).relu())
        return torch.cond(x.sum() > 0, one, other, (x,))


class Map(Plain):
    """Three slices, each through both layers."""

    def forward(self, x: Tensor) -> Tensor:
        slices: Tensor = map_over(super().forward, x.reshape(3, -1, 16))
        return slices


class Scan(Plain):
    """A state that goes through both layers."""

    def forward(self, x: Tensor) -> Tensor:
        layers = super().forward
        xs = x.reshape(3, -1, 16)
        results: Tensor = scan(lambda c, x: (layers(c) + x, x * c), xs[0].tanh(), xs)[1]
        return results


class While(Plain):
    """Both layers, three times."""

    def forward(self, x: Tensor) -> Tensor:
        layers = super().forward
        step = torch.tensor(0)
        results = while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, layers(x)), (step, x))
        last: Tensor = results[1]
        return last


def network(block: Callable[[], nn.Module]) -> nn.Sequential:
    """Two blocks and a head, always with the same parameters."""
    torch.manual_seed(0)
    return nn.Sequential(block(), block(), nn.Linear(16, 8))
