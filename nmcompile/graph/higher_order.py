"""Which graphs a call of a higher-order operator runs, and which operand feeds which input.

    cond(pred, yes, no, (x, w))              yes(x, w) or no(x, w)
    scan(f, (c,), (xs,), (w,))               c, y = f(c, x, w) for every x of xs
    while_loop(go, f, (c,), (w,))            while go(c, w): c = f(c, w)

An operator that is not in the table is one whose graphs nothing is known about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from nmcompile import _torch
from nmcompile.gemm import size_hint

#: The operator that calls a region.
REGION = "invoke_subgraph"


@dataclass(frozen=True)
class Body:
    """A graph that a call runs, with what feeds its inputs, in order.

    ``returns``: its outputs are the results of the call, one by one. ``carries``: pairs of an
    output and the input that reads it in the next iteration. ``times``: how often one call runs
    it, None where nobody knows.
    """

    gm: fx.GraphModule
    operands: tuple[Any, ...]
    returns: bool = True
    carries: tuple[tuple[int, int], ...] = ()
    times: int | None = 1


def is_region(node: fx.Node) -> bool:
    """Whether a node calls a region (``torch.compiler.nested_compile_region``)."""
    return isinstance(node.target, _torch.HigherOrderOperator) and node.target.name() == REGION


def bodies(node: fx.Node) -> tuple[Body, ...]:
    """The graphs of a call, as far as its operator is in the table."""
    if not isinstance(node.target, _torch.HigherOrderOperator):
        return ()
    read = _TABLE.get(node.target.name())
    return tuple(read(node)) if read is not None and held_graphs(node) else ()


def held_graphs(node: fx.Node) -> list[fx.GraphModule]:
    """The graphs that a call is given, whatever its operator."""
    return [gm for n in node.all_input_nodes if (gm := _graph(n)) is not None]


def reachable(graph: fx.Graph) -> list[fx.Graph]:
    """The graph, and every one that it or one of those is given, each once."""
    found = {graph: None}
    for known in (stack := [graph]):
        for node in known.nodes:
            new = [gm.graph for gm in held_graphs(node) if gm.graph not in found]
            found |= dict.fromkeys(new)
            stack += new
    return list(found)


def outputs(graph: fx.Graph) -> list[Any]:
    """What a graph returns, in order."""
    (values,) = graph.output_node().args
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _graph(node: Any) -> fx.GraphModule | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    held = getattr(node.graph.owning_module, str(node.target), None)
    return held if isinstance(held, fx.GraphModule) else None


def _invoke_subgraph(node: fx.Node) -> Sequence[Body]:
    graph, _, *operands = node.args
    return [_body(graph, operands)]


def _cond(node: fx.Node) -> Sequence[Body]:
    _, yes, no, operands = node.args
    return [_body(yes, operands), _body(no, operands)]


def _map(node: fx.Node) -> Sequence[Body]:
    graph, xs, operands = node.args
    return [_body(graph, [*_list(xs), *_list(operands)], times=_length(xs))]


def _scan(node: fx.Node) -> Sequence[Body]:
    graph, init, xs, operands = node.args
    carries = [(i, i) for i in range(len(_list(init)))]
    fed = [*_list(init), *_list(xs), *_list(operands)]
    return [_body(graph, fed, carries=carries, times=_length(xs))]


def _while_loop(node: fx.Node) -> Sequence[Body]:
    condition, body, carried, operands = node.args
    fed = [*_list(carried), *_list(operands)]
    carries = [(i, i) for i in range(len(_list(carried)))]
    going = _body(condition, fed, returns=False, times=None)
    return [going, _body(body, fed, carries=carries, times=None)]


def _associative_scan(node: fx.Node) -> Sequence[Body]:
    graph, xs, operands = node.args
    count = len(_list(xs))
    carries = [(i, i + side) for i in range(count) for side in (0, count)]
    fed = [*_list(xs), *_list(xs), *_list(operands)]
    return [_body(graph, fed, carries=carries, times=None)]


def _body(
    graph: Any,
    operands: Any,
    *,
    returns: bool = True,
    carries: Sequence[tuple[int, int]] = (),
    times: int | None = 1,
) -> Body:
    gm = _graph(graph)
    assert gm is not None
    return Body(gm, tuple(operands), returns, tuple(carries), times)


def _list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _length(xs: Any) -> int | None:
    """How many slices there are along the first dimension; None where that is not known."""
    first = next((x for x in _list(xs) if isinstance(x, fx.Node)), None)
    return size_hint(first.meta["val"].shape[0]) or None if first is not None else None


_TABLE: dict[str, Callable[[fx.Node], Sequence[Body]]] = {
    REGION: _invoke_subgraph,
    "cond": _cond,
    "map_impl": _map,
    "scan": _scan,
    "while_loop": _while_loop,
    "while_loop_stack_output": _while_loop,
    "associative_scan": _associative_scan,
}
