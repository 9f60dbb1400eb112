"""Values that are computed for the backward alone although they depend on no tangent.

    logits = x w^T;  loss = f(logits)          the forward
    d = g(logits);   dx = d w;   dw = d^T x    no output of the forward depends on them
    outputs: loss, dx * tangent, dw * tangent

A loss that computes its gradient in its forward looks so, and what a backward computes anew.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.graph.aten import CONVERSIONS, VIEWS, is_item
from nmcompile.graph.computed_again import ancestors, is_again

aten = torch.ops.aten

#: What moves, repeats, joins or conjugates elements, and computes none.
_MOVES = frozenset(
    [
        *VIEWS,
        *CONVERSIONS,
        aten.cat.default,
        aten.stack.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.as_strided.default,
        aten.constant_pad_nd.default,
        aten.flip.default,
        aten.repeat.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.gather.default,
        aten._conj.default,
        aten._conj_physical.default,
        aten.conj_physical.default,
        aten.resolve_conj.default,
    ]
)


def moves(node: fx.Node) -> bool:
    """Whether the node's elements are those of its inputs."""
    return node.target in _MOVES or is_item(node)


def backward_values(graph: fx.Graph, gradients: Collection[fx.Node]) -> list[fx.Node]:
    """Those values in graph order, what computes a value of the forward once more left out.

    Args:
        graph: any aten-level graph; without gradients it has none of them.
        gradients: the nodes that depend on a tangent.
    """
    if not gradients:
        return []
    calls = [n for n in graph.nodes if n.op == "call_function"]
    if any(map(is_again, calls)):  # a body, of which the forward's is another graph
        return [n for n in calls if n not in gradients and not is_again(n)]
    forward_outputs, gradient_outputs = _outputs(graph, gradients)
    if not forward_outputs:
        return []
    forward = ancestors(forward_outputs)
    backward = ancestors(gradient_outputs) - forward - set(gradients)
    if not any(node.op == "call_function" for node in backward):
        return []
    again = _computed_again(graph, forward, gradients)
    return [n for n in calls if n in backward and n not in again]


def _outputs(
    graph: fx.Graph, gradients: Collection[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """What the forward returns and a tangent belongs to, and the gradients of inputs.

    An output without a tangent (a metric, a loss's own gradient) is neither. In a graph that holds
    the whole step the loss is what the first gradient is the ones of.
    """
    found = _torch.outputs_of(graph)
    differentiable = [node for node, what, _ in found if what == "differentiable"]
    if differentiable:
        return differentiable, [node for node, what, _ in found if what == "gradient"]
    nodes = [node for node, *_ in found]
    starts = [n for n in gradients if not any(m in gradients for m in n.all_input_nodes)]
    losses = [n for start in starts for n in start.all_input_nodes]
    return losses or [n for n in nodes if n not in gradients], [n for n in nodes if n in gradients]


def _computed_again(
    graph: fx.Graph, forward: set[fx.Node], gradients: Collection[fx.Node]
) -> set[fx.Node]:
    """Nodes that make the same call of the same values as one of the forward's."""
    first: dict[Any, fx.Node] = {}
    same: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node in gradients or _is_random(node):
            continue
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: same.get(n, n))
        key = (node.target, repr(arguments))
        if node in forward:
            first.setdefault(key, node)
        same[node] = first.get(key, node)
    return {node for node, twin in same.items() if twin is not node}


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
