"""Let one read of a tensor write everything that is pruned from it.

    before   a = nm.prune(dy [T,O], seed, 1, 2, 4, [1], "mvue")               dgrad
             b = nm.prune(permute(dy, [1, 0]), seed, 2, 2, 4, [1], "mvue")    wgrad
    after    both = nm.prune_each(dy, seed, [1, 2], 2, 4, [[1], [0]], "mvue")
             a = both[0];  b = permute(both[1], [1, 0])

Blocks lie in memory as they did, so the masks are the same. Equal calls are left to Inductor, which
merges them. On devices whose kernels are generated each call is a kernel of its own, which Inductor
launches.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nmcompile.graph.aten import permutation
from nmcompile.graph.insert import Inserter
from nmcompile.graph.same_operand import value_of
from nmcompile.ops.schemas import Prune, PruneEach
from nmcompile.passes.plan import Kernels


@dataclass(frozen=True)
class Request:
    """``node`` prunes ``base``, transposed to ``order``; its blocks run along ``dims`` of it."""

    node: fx.Node
    base: fx.Node
    order: tuple[int, ...]
    dims: tuple[int, ...]

    @property
    def call(self) -> Prune:
        """The call of the operator at the node."""
        return Prune.of(self.node)


def share_pruned(kernels: Kernels) -> None:
    """Merge the masks of one tensor by one method."""
    for requests in shared(kernels):
        _merge(kernels.graph, requests)


def shared(kernels: Kernels) -> list[list[Request]]:
    """Calls that one read can serve, at least two different ones in each list; changes nothing."""
    groups: dict[Any, list[Request]] = {}
    for node in sorted(kernels.called(Prune)):
        request = _request(node)
        groups.setdefault(_key(request), []).append(request)
    return [some for some in groups.values() if len({(r.dims, r.call.stream) for r in some}) > 1]


def _request(node: fx.Node) -> Request:
    call = Prune.of(node)
    base, order = call.x, tuple(range(call.x.meta["val"].dim()))
    while (step := permutation(base)) is not None:
        (base,) = base.all_input_nodes
        order = tuple(step[d] for d in order)
    return Request(node, base, order, tuple(order[d] for d in call.dims))


def _key(request: Request) -> Any:
    call = request.call
    kind = (call.n, call.m, call.method, call.seed)
    # A copy of what overlaps (an expanded gradient) lies as its transpose says, not as its base.
    like = torch.empty_like(request.base.meta["val"]).permute(request.order)
    usual = str(like.stride()) == str(request.node.meta["val"].stride())
    return (value_of(request.base), kind, usual or request)


def _merge(graph: fx.Graph, requests: list[Request]) -> None:
    first, insert = requests[0], Inserter(graph)
    distinct = list(dict.fromkeys((r.call.stream, r.dims) for r in requests))
    marks = dict.fromkeys(repr(r.node.meta.get("nm", r.node)) for r in requests)
    call = first.call
    streams, dims = [stream for stream, _ in distinct], [list(dims) for _, dims in distinct]
    with insert.before(first.node):
        each = PruneEach(first.base, call.seed, streams, call.n, call.m, dims, call.method)
        results = insert.op(first.node, each, mark=" + ".join(marks), name="pruned_each")
        values = {}
        for request in requests:
            position = distinct.index((request.call.stream, request.dims))
            item = insert.call(request.node, operator.getitem, results, position)
            values[request.node] = insert.permute(request.node, item, list(request.order))
    for node, value in values.items():
        node.replace_all_uses_with(value)
        graph.erase_node(node)
