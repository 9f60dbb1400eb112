"""Let one read of a tensor write everything that is compressed from it.

    before   (a,) = nm.compress(dy, seed, [1], [1], 2, 4, "mvue", layout)     dgrad
             (b,) = nm.compress(dy, seed, [2], [0], 2, 4, "mvue", layout)     wgrad
    after    a, b = nm.compress(dy, seed, [1, 2], [1, 0], 2, 4, "mvue", layout)

Equal requests (one activation that several products read) become one result.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from nmcompile.graph.backward_roles import is_view
from nmcompile.graph.insert import SiteMark, in_backward
from nmcompile.passes.plan import Plan


def share_compressed(plan: Plan) -> None:
    """Merge the compressions of one tensor by one method, on one side of the partition."""
    target = torch.ops.nm.compress.default
    groups: dict[Any, list[fx.Node]] = {}
    for node in plan.graph.find_nodes(op="call_function", target=target):
        x, seed, _, _, *rest = node.args
        key = (_value(x), seed, *rest, in_backward(node))
        groups.setdefault(key, []).append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            _merge(plan.graph, nodes)


def _value(x: Any) -> Any:
    """What ``x`` is, so that equal views of one tensor are equal."""
    if isinstance(x, fx.Node) and is_view(x):
        base, *shape = x.args
        return (x.target, _value(base), repr(shape), repr(x.kwargs))
    return x


def _merge(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    first = nodes[0]
    requests: dict[tuple[int, int], list[fx.Node]] = {}
    for node in nodes:
        for position, request in enumerate(zip(node.args[2], node.args[3], strict=True)):  # type: ignore[arg-type]
            users = [u for u in node.users if u.args[1] == position]
            requests.setdefault(request, []).extend(users)
    # Always in the same order: equal kernels are then one kernel.
    requests = dict(sorted(requests.items(), key=lambda item: (-item[0][1], item[0][0])))
    streams, dims = zip(*requests, strict=True)
    first.args = (*first.args[:2], list(streams), list(dims), *first.args[4:])
    values: list[Any] = []
    for position, users in enumerate(requests.values()):
        kept = users[0]
        values.append(kept.meta["val"])
        with graph.inserting_after(first):
            new = graph.call_function(operator.getitem, (first, position))
        new.meta = kept.meta
        for user in users:
            user.replace_all_uses_with(new)
            graph.erase_node(user)
    first.meta["val"] = values
    marks = dict.fromkeys(repr(node.meta["nm"]) for node in nodes)
    first.meta["nm"] = SiteMark(" + ".join(marks))
    for node in nodes[1:]:
        graph.erase_node(node)
