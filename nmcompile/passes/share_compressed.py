"""Let one read of a tensor write everything that is compressed from it.

    before   (a,) = nm.compress(dy, seed, [1], [1], 2, 4, "mvue", layout)     dgrad
             (b,) = nm.compress(dy, seed, [2], [0], 2, 4, "mvue", layout)     wgrad
    after    a, b = nm.compress(dy, seed, [1, 2], [1, 0], 2, 4, "mvue", layout)

Equal requests (one activation that several products read) become one result. Where the library
packs, that is one nm.prune and one nm.pack. A pruned weight is compressed where it was pruned: what
dgrad reads of one that fprop reads too is kept from there.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from torch import fx

from nmcompile.graph.aten import is_view, items
from nmcompile.graph.insert import SiteMark, in_backward
from nmcompile.graph.same_operand import value_of
from nmcompile.ops.schemas import Compress, Pack, Prune
from nmcompile.passes.plan import Plan


def share_compressed(plan: Plan) -> None:
    """Merge the compressions of one tensor by one method, on one side of the partition."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in Compress.nodes(plan.graph):
        groups.setdefault(shared_key(node), []).append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            _merge(plan.graph, nodes)
    for operator_ in (Prune, Pack):
        _one_of_equal_ones(plan.graph, operator_)


def shared_key(node: fx.Node) -> Any:
    """Equal for two compressions that one kernel can do with one read."""
    call = Compress.of(node)
    kind = (call.n, call.m, call.method, call.layout)
    side = in_backward(call.x if call.x.target is Prune.operator else node)
    return (value_of(call.x), call.seed, kind, side)


def _one_of_equal_ones(graph: fx.Graph, op: type[Prune | Pack]) -> None:
    """Let the first of equal calls stand for all, among those that make a packed operand."""
    first: dict[Any, fx.Node] = {}
    for node in sorted(op.nodes(graph)):
        if op is Prune and not any(_is_packed(user) for user in node.users):
            continue
        same = first.setdefault((*map(_comparable, node.args), in_backward(node)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _is_packed(node: fx.Node) -> bool:
    return node.target is Pack.operator or (is_view(node) and any(map(_is_packed, node.users)))


def _comparable(argument: Any) -> Any:
    return value_of(argument) if isinstance(argument, fx.Node) else repr(argument)


def _merge(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    first = nodes[0]
    requests: dict[tuple[int, int], list[fx.Node]] = {}
    for node in nodes:
        call = Compress.of(node)
        for position, request in enumerate(zip(call.streams, call.dims, strict=True)):
            requests.setdefault(request, []).extend(items(node, position))
    # Always in the same order: equal kernels are then one kernel.
    requests = dict(sorted(requests.items(), key=lambda item: (-item[0][1], item[0][0])))
    streams, dims = map(list, zip(*requests, strict=True))
    replace(Compress.of(first), streams=streams, dims=dims).write(first)
    values: list[Any] = []
    for position, users in enumerate(requests.values()):
        kept = users[0]
        values.append(kept.meta["val"])
        with graph.inserting_after(first):
            new = graph.call_function(operator.getitem, (first, position))
        new.meta = {**{k: v for k, v in first.meta.items() if k != "nm"}, "val": kept.meta["val"]}
        for user in users:
            user.replace_all_uses_with(new)
            graph.erase_node(user)
    first.meta["val"] = values
    marks = dict.fromkeys(repr(node.meta["nm"]) for node in nodes)
    first.meta["nm"] = SiteMark(" + ".join(marks))
    for node in nodes[1:]:
        graph.erase_node(node)
