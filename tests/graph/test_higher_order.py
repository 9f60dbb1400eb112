"""Which operand of a call feeds which input of which graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from nmcompile.graph.higher_order import bodies, held_graphs, outputs, reachable
from tests.graph.calls import calling, ops


def f(*values: Any) -> Any:
    """Any body; ``calling`` traces one of two inputs."""
    return values


def two(a: Any, b: Any) -> Any:
    """A body of two inputs."""
    return a, b


CALLS = {
    "invoke_subgraph": (lambda n: (n["f"], "f", n["x"], n["w"]), [["x", "w"]]),
    "cond": (lambda n: (n["d"], n["f"], n["g"], (n["x"], n["w"])), [["x", "w"], ["x", "w"]]),
    "map_impl": (lambda n: (n["f"], [n["x"]], [n["w"]]), [["x", "w"]]),
    "scan": (lambda n: (n["f"], [n["d"]], [n["x"]], [n["w"]]), [["d", "x", "w"]]),
    "while_loop": (lambda n: (n["f"], n["g"], (n["x"],), (n["w"],)), [["x", "w"], ["x", "w"]]),
    "associative_scan": (lambda n: (n["f"], [n["x"]], [n["w"]]), [["x", "x", "w"]]),
}


@pytest.mark.parametrize("name", CALLS)
def test_operands_feed_inputs_in_order(name: str) -> None:
    arguments, expected = CALLS[name]
    gm = calling(
        lambda g, n: g.call_function(getattr(ops, name), arguments(n)),  # type: ignore[no-untyped-call]
        f=two,
        g=two,
    )
    for node in gm.graph.find_nodes(op="placeholder"):
        node.meta["val"] = torch.zeros(3, 4)
    (call,) = outputs(gm.graph)
    assert [[str(n) for n in body.operands] for body in bodies(call)] == expected
    assert all(body.gm in held_graphs(call) for body in bodies(call))
    assert set(reachable(gm.graph)) == {gm.graph, *(body.gm.graph for body in bodies(call))}


def test_loops_carry_and_say_how_often() -> None:
    def scan(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        n["x"].meta["val"] = torch.zeros(5, 4)
        return g.call_function(ops.scan, (n["f"], [n["w"]], [n["x"]], []))

    (body,) = bodies(outputs(calling(scan, f=two).graph)[0])
    assert (body.carries, body.times, body.returns) == (((0, 0),), 5, True)

    def loop(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        return g.call_function(ops.while_loop, (n["f"], n["g"], (n["x"],), (n["w"],)))

    going, body = bodies(outputs(calling(loop, f=two, g=two).graph)[0])
    assert (going.returns, body.carries, body.times) == (False, ((0, 0),), None)


def test_other_calls_have_no_bodies() -> None:
    def write(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        return [g.call_function(torch.add, (n["x"], n["w"])), g.call_function(ops.wrap, (n["f"],))]

    plain, unknown = outputs(calling(write, f=two).graph)
    assert (bodies(plain), bodies(unknown)) == ((), ())
    assert len(held_graphs(unknown)) == 1
