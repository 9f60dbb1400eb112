"""A graph that calls a region, as it is after the partitioner."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from tests.graph.calls import ops

X, W = torch.randn(4, 6), torch.randn(4, 6)


def caller(
    region: Callable[..., Any], write: Callable[..., Any] = lambda *_: None
) -> fx.GraphModule:
    """Calls a region twice and returns all that it got."""
    inside = make_fx(region, tracing_mode="fake")(X, W)
    graph = fx.Graph()
    x, w = (graph.placeholder(name) for name in "xw")
    held = graph.get_attr("region")
    mode = next(iter(inside.graph.nodes)).meta["val"].fake_mode
    for node, value in ((x, X), (w, W)):
        node.meta["val"] = mode.from_tensor(value)
    results, outside = inside.graph.output_node().args[0], []
    for _ in range(2):
        call = graph.call_function(ops.invoke_subgraph, (held, "region", x, w))
        call.meta["val"] = tuple(r.meta["val"] for r in results)
        for i, result in enumerate(results):
            outside.append(graph.call_function(operator.getitem, (call, i)))
            outside[-1].meta["val"] = result.meta["val"]
    write(graph, x)
    graph.output(outside)
    return fx.GraphModule({"region": inside}, graph)
