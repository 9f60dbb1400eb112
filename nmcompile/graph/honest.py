"""Whether the nodes that a pass added or changed are what their metadata says."""

from __future__ import annotations

from collections.abc import Iterator
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
    """The calls of a graph at one time."""

    calls: dict[fx.Node, Any]

    @classmethod
    def of(cls, graph: fx.Graph) -> Snapshot:
        """The calls of ``graph`` now."""
        return cls({n: (n.target, n.args, n.kwargs) for n in graph.nodes})


def dishonest(graph: fx.Graph, before: Snapshot) -> Iterator[str]:
    """A sentence for every new or changed node whose value is not its ``meta["val"]``.

    Shapes, strides, dtypes and devices are compared, by evaluating the node on fake tensors.
    """
    for node in graph.nodes:
        unchanged = before.calls.get(node) == (node.target, node.args, node.kwargs)
        if unchanged or not _can_evaluate(node):
            continue
        if "val" not in node.meta:
            yield f"{node} has no meta['val']"
            continue
        real, said = _described(_evaluate(node)), _described(node.meta["val"])
        if real != said:
            yield f"{node} = {node.target} is {real}, and its meta['val'] says {said}"


def _can_evaluate(node: fx.Node) -> bool:
    return isinstance(node.target, _torch.OpOverload) or (
        is_item(node) and isinstance(node.all_input_nodes[0].target, _torch.OpOverload)
    )


def _evaluate(node: fx.Node) -> Any:
    values: list[Any] = []
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    fx.node.map_arg((node.args, node.kwargs), lambda n: values.append(n.meta["val"]))
    flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
    mode = next((v.fake_mode for v in flat if hasattr(v, "fake_mode")), nullcontext())
    with mode:
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _described(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_described(v) for v in value]
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    sizes = [size_hint(s) for s in value.shape]
    strides = [size_hint(s) for s, size in zip(value.stride(), sizes, strict=True) if size > 1]
    return (sizes, strides, value.dtype, value.device)
