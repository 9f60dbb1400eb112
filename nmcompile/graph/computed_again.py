"""What the backward of a call computes once more of its forward.

    y = cond(p, yes, no, (x, w))                    yes: h = mm(x, w);  tanh(h)
    dx, dw = cond(p, yes_2, no_2, (x, w, dy))       yes_2: h = mm(x, w);  t = tanh(h);  ...

A branch or a loop keeps little for its backward, whose graph begins with the forward's own
operations. They are found by their operands, which are the same in the caller or were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from nmcompile.graph.aten import (
    Convolution,
    ConvolutionBackward,
    is_item,
    is_product,
    is_view,
    item_index,
    view_base,
)
from nmcompile.graph.grouped import is_grouped
from nmcompile.graph.higher_order import Body, outputs

aten, prims = torch.ops.aten, torch.ops.prims

#: The same value under another name.
_SAME = frozenset([aten.alias.default, aten.detach.default, aten.clone.default])
#: What a loop's backward does to what the forward kept of each iteration.
_REORDERS = frozenset([*_SAME, prims.rev.default, aten.flip.default])
_JOINS = frozenset([*_SAME, aten.unsqueeze.default, aten.slice.Tensor])


_AGAIN, _READ_IN = "nm_again", "nm_read_in"
_STACK = "nn_module_stack"


def mark_again(same: dict[fx.Node, fx.Node]) -> None:
    """Remember which nodes are computed again, and the modules that they are of.

    Of a value also which modules of the forward read it: the forward's last product is not
    computed again, and nothing else tells of which module its gradients are.

    Args:
        same: what ``same_values`` has found.
    """
    for node, twin in same.items():
        if twin.op == "call_function" and twin.target is node.target:
            node.meta[_AGAIN] = True
            if twin.meta.get(_STACK):
                node.meta[_STACK] = twin.meta[_STACK]
        base = view_base(twin)
        products = [n for n in twin.graph.nodes if multiplies(n) and n.meta.get(_STACK)]
        readers = [n for n in products if base in map(view_base, n.all_input_nodes)]
        node.meta[_READ_IN] = {n.name: n.meta[_STACK] for n in readers}


def multiplies(node: fx.Node) -> bool:
    """Whether it is a product of any kind."""
    convolutions = (Convolution.operator, ConvolutionBackward.operator)
    return is_product(node) or is_grouped(node) or node.target in convolutions


def is_again(node: fx.Node) -> bool:
    """Whether the node computes a value of the forward's graph once more."""
    return bool(node.meta.get(_AGAIN))


def read_in(node: fx.Node) -> dict[str, Any]:
    """Which products of the forward's graph read this value, each with its stack of modules."""
    known: dict[str, Any] = {}
    while True:
        known |= node.meta.get(_READ_IN, {})
        if not is_view(node):
            return known
        node = node.all_input_nodes[0]


def same_values(call: fx.Node, forward: Body, backward: Body) -> dict[fx.Node, fx.Node]:
    """Nodes of the backward's graph that hold a value of the forward's: kept, or computed again.

    Args:
        call: of the forward.
        forward, backward: what it runs, and what the call for its gradients runs.

    Returns:
        for each the forward's node. What is computed again makes the same call of the same values
        as that one, of those that a result depends on.
    """
    origins = _Origins(call, forward)
    same: dict[fx.Node, fx.Node] = {}
    stacked: dict[fx.Node, fx.Node] = {}
    inputs = backward.gm.graph.find_nodes(op="placeholder")
    for node, operand in zip(inputs, backward.operands, strict=True):
        if (origin := origins.of(operand)) is not None:
            same[node] = origin
        elif (origin := origins.of_joined(operand)) is not None:
            stacked[node] = origin
    first = {
        _key(node, lambda n: _plain(n)): node
        for node in forward.gm.graph.nodes
        if _is_call(node) and node in origins.live
    }
    for node in filter(_is_call, backward.gm.graph.nodes):
        read = node.all_input_nodes[0] if node.all_input_nodes else None
        if node.target is aten.select.int and read in stacked:
            same[node] = stacked[read]  # one iteration of them
            continue
        twin = first.get(_key(node, lambda n: same.get(_plain(n), f"own {n}")))
        if twin is not None:
            same[node] = twin
    return same


class _Origins:
    """Which value of the forward's graph an operand of the backward's call is."""

    def __init__(self, call: fx.Node, forward: Body) -> None:
        graph = forward.gm.graph
        self.call = call
        self.results = outputs(graph)
        self.inputs = graph.find_nodes(op="placeholder")
        operands = map(_plain, forward.operands)
        self.fed = dict(zip(operands, self.inputs, strict=True))
        self.carried = dict(forward.carries)
        self.live = ancestors([n for n in self.results if isinstance(n, fx.Node)])

    def of(self, operand: Any) -> fx.Node | None:
        """What was fed to the forward as well, or what it returned."""
        value = _through(operand, _REORDERS)
        found = self.fed.get(_plain(operand)) or self.fed.get(value)
        if found is None and isinstance(value, fx.Node) and self._is_result(value):
            result = self.results[item_index(value)]
            found = _plain(result) if isinstance(result, fx.Node) else None
        return found

    def of_joined(self, operand: Any) -> fx.Node | None:
        """What a loop reads in every iteration: its first value, and those that it carried."""
        if not isinstance(operand, fx.Node) or operand.target is not aten.cat.default:
            return None
        parts = [_through(part, _JOINS) for part in operand.all_input_nodes]
        found = {
            self.inputs[self.carried[item_index(p)]]
            if self._is_result(p) and item_index(p) in self.carried
            else self.fed.get(p)
            for p in parts
        }
        return found.pop() if len(found) == 1 else None

    def _is_result(self, value: fx.Node) -> bool:
        return is_item(value) and value.all_input_nodes[0] is self.call


def _is_call(node: fx.Node) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return node.op == "call_function" and node.target not in _SAME and not random


def _key(node: fx.Node, name: Callable[[fx.Node], Any]) -> tuple[Any, str]:
    return node.target, repr(fx.node.map_arg((node.args, node.kwargs), name))


def _plain(value: Any) -> Any:
    return _through(value, _SAME)


def _through(value: Any, targets: frozenset[Any]) -> Any:
    while isinstance(value, fx.Node) and value.target in targets:
        value = value.all_input_nodes[0]
    return value


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they depend on."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
