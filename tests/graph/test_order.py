"""How values lie over an operand, by their order in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.graph.order import Order, is_dense, is_expanded, is_same_memory
from tests.passes.fused import half

LAST: dict[str, Any] = {"memory_format": torch.channels_last}


def lies(f: Any, *args: torch.Tensor, shape: tuple[int, int]) -> list[str | None]:
    """How the operands of the last elementwise operator lie over an operand of that shape."""
    graph = make_fx(f, tracing_mode="fake")(*args).graph
    *_, reader, _ = graph.nodes
    return [Order(*shape).lies(n, reader) for n in reader.all_input_nodes]


@pytest.mark.parametrize(
    ("x", "y", "shape", "expected"),
    [
        (half(8, 32), half(8, 32), (8, 32), "full"),
        (half(2, 4, 32), half(2, 4, 1), (8, 32), "per_row"),
        (half(2, 4, 32), half(32), (8, 32), "per_column"),
        (half(2, 4, 32), half(4, 32), (8, 32), None),  # one matrix for each of the batch
        (half(2, 4, 32), half(2, 1, 32), (8, 32), None),
        (half(32, 32), half(32, 1), (32, 32), "per_row"),
        (half(32, 32), half(1, 32), (32, 32), "per_column"),
        (half(8, 32), half(32, 8).t(), (8, 32), None),  # another order in memory
        (half(8, 32), half(8, 64)[:, ::2], (8, 32), None),
        (half(8, 32), half(8, 32).double(), (8, 32), None),
        (half(2, 16, 4, 4).contiguous(**LAST), half(16, 1, 1), (32, 16), "per_column"),
        (half(2, 16, 4, 4).contiguous(**LAST), half(2, 1, 4, 4), (32, 16), "per_row"),
        (half(2, 16, 4, 4).contiguous(**LAST), half(2, 16, 4, 4), (32, 16), None),
        (half(2, 16, 4, 4), half(16, 1, 1), (32, 16), None),
    ],
)
def test_how_a_value_lies(x: Any, y: Any, shape: Any, expected: str | None) -> None:
    assert lies(lambda x, y: x * y, x, y, shape=shape)[1] == expected


def test_views_and_expansions() -> None:
    def f(x: Any, row: Any) -> Any:
        return x.permute(0, 2, 3, 1).reshape(32, 16) * row.expand(32, 16)

    x = half(2, 16, 4, 4).contiguous(**LAST)
    assert lies(f, x, half(32, 1), shape=(32, 16)) == ["full", "full"]
    graph = make_fx(f, tracing_mode="fake")(x, half(32, 1)).graph
    views = [n for n in graph.nodes if n.op == "call_function" and is_same_memory(n)]
    assert [str(n.target) for n in views] == ["aten.permute.default", "aten.view.default"]
    (expanded,) = [n for n in graph.nodes if is_expanded(n)]
    assert Order(32, 16).is_broadcast(expanded)
    assert not is_dense(expanded.meta["val"])


def test_what_is_dense() -> None:
    x = half(4, 6, 8)
    assert all(map(is_dense, (x, x.permute(2, 0, 1), x[:2], x[:1, :2].transpose(0, 2))))
    assert not any(map(is_dense, (x[:, ::2], x[:, :, :4], x[:, :1].expand(4, 6, 8))))


def test_a_value_has_the_shape_of_the_operand_or_its_size_alone() -> None:
    graph = fx.Graph()
    order = Order(8, 32)
    for shape, same in (((8, 32), True), ((32, 8), False), ((2, 4, 32), False), ((256,), False)):
        node = graph.placeholder("x")
        node.meta["val"] = torch.empty(shape)
        assert order.has_shape(node) is same
