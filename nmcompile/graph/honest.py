"""Whether the nodes that a pass added or changed are what their metadata says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.gemm import size_hint
from nmcompile.graph.aten import is_item


@dataclass(frozen=True)
class Snapshot:
    """The calls of a graph at one time, and the values that their metadata held."""

    calls: dict[fx.Node, Any]
    values: dict[fx.Node, Any]

    @classmethod
    def of(cls, graph: fx.Graph) -> Snapshot:
        """The calls and values of ``graph`` now."""
        values = {n: n.meta.get("val") for n in graph.nodes}
        return cls({n: (n.target, n.args, n.kwargs) for n in graph.nodes}, values)

    def settles(self, node: fx.Node) -> bool:
        """Whether the node is the same call of values that look the same, and so is its own value.

        Real tensors may lie otherwise than fake ones (a convolution's result): what was recorded on
        real ones stands as long as a pass leaves the operands as they were.
        """
        if node not in self.calls or self.values[node] is not node.meta.get("val"):
            return False
        target, args, kwargs = self.calls[node]
        now = (node.args, node.kwargs)
        same = (args, kwargs) == now and all(
            self.values[n] is n.meta.get("val") for n in node.all_input_nodes
        )
        return target == node.target and (
            same or _seen((args, kwargs), self.values.__getitem__) == _seen(now, _value)
        )


def dishonest(graph: fx.Graph, before: Snapshot) -> Iterator[str]:
    """A sentence for every node whose value is not its ``meta["val"]``, as far as that is new.

    Shapes, strides, dtypes and devices are compared, by evaluating on fake tensors what was added
    or changed and what reads other values than it did.
    """
    for node in graph.nodes:
        if not _can_evaluate(node) or before.settles(node):
            continue
        if "val" not in node.meta:
            yield f"{node} has no meta['val']"
        elif all("val" in n.meta for n in node.all_input_nodes):  # else that input is to blame
            yield from _differences(node)


def _can_evaluate(node: fx.Node) -> bool:
    return isinstance(node.target, _torch.OpOverload) or (
        is_item(node) and isinstance(node.all_input_nodes[0].target, _torch.OpOverload)
    )


def _differences(node: fx.Node) -> Iterator[str]:
    try:
        real = _described(_evaluate(node))
    except Exception as error:  # whatever an operator raises for arguments that do not fit
        yield f"{node} = {node.target} cannot be computed: {type(error).__name__}: {error}"
        return
    said = _described(node.meta["val"])
    if real != said:
        yield f"{node} = {node.target} is {real}, and its meta['val'] says {said}"


def _evaluate(node: fx.Node) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    values = [n.meta["val"] for n in (*node.all_input_nodes, node)]
    flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
    mode = next((v.fake_mode for v in flat if hasattr(v, "fake_mode")), nullcontext())
    with mode:
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _seen(arguments: Any, value_of: Callable[[fx.Node], Any]) -> Any:
    """Arguments with what can be seen of a value in the place of each node."""
    return fx.node.map_arg(arguments, lambda node: _described(value_of(node)))


def _described(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_described(v) for v in value]
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    sizes = [size_hint(s) for s in value.shape]
    strides = [size_hint(s) for s, size in zip(value.stride(), sizes, strict=True) if size > 1]
    return (sizes, strides, value.dtype, value.device)
