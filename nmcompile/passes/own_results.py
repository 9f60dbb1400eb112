"""Let a caller take of a region only what the region made (post-grad graphs).

    region   y = silu(x);  return y, x                            x is saved for the backward
    before   y, saved = invoke_subgraph(region, x);  return y, saved
    after    y, _     = invoke_subgraph(region, x);  return y, x

Inductor takes every result of a region for memory of its own. Where one is an input of the region,
or another of its results, the caller would write something else into that memory while it is still
read, and gradients are wrong (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from nmcompile.graph.aten import is_item, item_index, seen_through
from nmcompile.graph.higher_order import bodies, is_region, outputs
from nmcompile.graph.insert import Inserter
from nmcompile.passes.plan import Kernels

aten = torch.ops.aten


@dataclass(frozen=True)
class Match:
    """``items`` take a region's ``result`` number ``index``: ``views``, in order, of shared memory.

    ``owner``: the caller's value in that memory; None where no input and no result is all of it.
    """

    items: Sequence[fx.Node]
    index: int
    result: fx.Node
    views: Sequence[fx.Node]
    owner: fx.Node | None


def own_results(kernels: Kernels) -> None:
    """Rewrite every match of every call."""
    for call in [n for n in kernels.graph.nodes if is_region(n)]:
        for match in list(shared_results(call)):
            if _can_be_taken(match):
                _take_from_owner(call, match)
            else:
                _copy_inside(match)


def shared_results(call: fx.Node) -> Iterator[Match]:
    """The results of a region that share memory with its inputs or each other; changes nothing."""
    (body,) = bodies(call)
    returned = outputs(body.gm.graph)
    items: dict[int, list[fx.Node]] = {}
    for user in filter(is_item, call.users):
        items.setdefault(item_index(user), []).append(user)
    looks = {i: seen_through(returned[i], _looks) for i in items if _is_tensor(returned[i])}
    inputs = body.gm.graph.find_nodes(op="placeholder")
    owners: dict[fx.Node, fx.Node | None] = dict(zip(inputs, body.operands, strict=True))
    for i in sorted(looks, key=lambda i: len(looks[i][1])):
        base, views = looks[i]
        if base in owners:
            yield Match(items[i], i, returned[i], views, owners[base])
        else:
            owners[base] = None if views else items[i][0]


def _is_tensor(value: object) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


def _looks(node: fx.Node) -> bool:
    """Whether it is a view, or one of several that an operator returns."""
    if is_item(node):
        return _looks(node.all_input_nodes[0])
    return getattr(node.target, "is_view", False) or node.target is aten._unsafe_view.default


def _can_be_taken(match: Match) -> bool:
    """Not where a view has a symbolic size, which the caller may write in another way."""
    if not isinstance(match.owner, fx.Node) or _is_overwritten(match.owner):
        return False
    return all(len(view.all_input_nodes) == 1 for view in match.views)


def _is_overwritten(value: fx.Node) -> bool:
    return any(u.target is aten.copy_.default and u.args[0] is value for u in value.users)


def _take_from_owner(call: fx.Node, match: Match) -> None:
    owner, insert = match.owner, Inserter(call.graph)
    assert owner is not None
    if is_item(owner) and owner.all_input_nodes[0] is call:
        call.append(owner)  # in front of all that will read it
    for item in match.items:
        with insert.before(item):
            value = insert.shown(item, owner, match.views)
        item.replace_all_uses_with(value)
        call.graph.erase_node(item)


def _copy_inside(match: Match) -> None:
    """The region returns a copy, to all its callers; the others find nothing shared any more."""
    graph, insert = match.result.graph, Inserter(match.result.graph)
    returned = graph.output_node()
    with insert.before(returned):
        copy = insert.call(match.result, aten.clone.default, match.result)
    values = outputs(graph)
    values[match.index] = copy
    returned.args = (tuple(values),)
