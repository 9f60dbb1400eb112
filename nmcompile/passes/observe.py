"""Show what is pruned to a sample, in the graphs of a sampled step (post-grad graphs).

    before   pruned = nm.prune(dy_t [O,T], seed, 1, 2, 4, [1], "mvue")
             dw = mm(pruned, x [T,I])
             return dw
    after    pruned = nm.prune(dy_t [O,T], seed, 1, 2, 4, [1], "mvue")
             dw = mm(pruned, x [T,I])
             nm.observe(full([1]), dy_t, pruned, [x], meter, "fc wgrad ...")
             return dw

All stand at the end, and read what lies in memory anyway: Inductor fuses everything else as it does
without them, so that a sampled step computes what any other step does, bit for bit. Where the order
costs memory it lets them run earlier itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.gemm import Operand, Role
from nmcompile.graph.aten import (
    CASTS,
    FLAT_VIEWS,
    WEIGHT_GRADIENT,
    added,
    argument,
    is_item,
    is_view,
    items,
    seen_through,
    view_arguments,
)
from nmcompile.graph.insert import Inserter
from nmcompile.ops.observe import Observe, ObservedSite
from nmcompile.ops.schemas import Prune, PruneEach, PruneInAnyLayout, PruneRagged
from nmcompile.passes.plan import Kernels, Plan, Simulated

aten = torch.ops.aten

#: ``node.meta`` of a pruned product: its site and its pruned operand, once for each role.
MARK = "nm_observed"


def mark_sites(plan: Plan) -> None:
    """Say at each simulated product which one it is; of graphs that no operator calls."""
    if plan.operator:
        return
    seen: Counter[tuple[str, Role]] = Counter()
    for d in plan.decisions:
        number = seen[d.gemm.path, d.gemm.role]
        seen[d.gemm.path, d.gemm.role] += 1
        pruning, is_read = d.pruning, isinstance(plan.results.get(d.site), Simulated)
        if pruning is None or not is_read or d.gemm.again:
            continue
        product = plan.products[d.site]
        operand = product.operand
        assert operand is not None
        how = (str(pruning.kind), str(pruning.format), str(pruning.method))
        where = (operand.dims, operand.groups, operand.offsets is not None)
        site = ObservedSite(d.gemm.path, str(d.gemm.role), number, *how, *where)
        product.node.meta[MARK] = (site, operand)


def observe(kernels: Kernels) -> None:
    """Append an ``nm.observe`` for every marked product whose operand a mask operator made."""
    if kernels.observer is None:
        return
    graph, insert = kernels.graph, Inserter(kernels.graph)
    found = []
    # What a checkpoint computes once more in the backward has been seen in the forward.
    backward = any((_torch.input_origin(n) or ("",))[0] == "tangent" for n in graph.nodes)
    for node in graph.nodes:
        site, operand = node.meta.get(MARK, (None, None))
        if site is None or operand is None or (backward and site.role == Role.FPROP):
            continue
        views, source = _behind(argument(node, operand.arg))
        if source is not None:
            found.append((node, site, operand, views, source))
    for node, site, operand, views, source in found:
        with insert.before(graph.output_node()):
            dense = _shown(insert, node, views, source)
            beside, site = _product(node, site, operand)
            result = _result(node) if site.target else None
            options: dict[str, Any] = {"dtype": torch.float32, "device": source.meta["val"].device}
            done = insert.call(node, aten.full.default, [1], 0.0, **options)
            shown = (dense, argument(node, operand.arg), beside, result)
            insert.op(node, Observe(done, *shown, kernels.observer, site.to_json()))


def _shown(insert: Inserter, product: fx.Node, views: list[fx.Node], source: fx.Node) -> fx.Node:
    """What was masked, as the product reads what was made of it."""
    for view in views:
        # The source may lie otherwise than what was made of it.
        target = aten.reshape.default if view.target in FLAT_VIEWS else view.target
        keys: dict[str, Any] = dict(view.kwargs)
        source = insert.call(product, target, source, *view_arguments(view), **keys)
    return source


def _behind(x: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """The views between a product and the mask of its operand, and what that masks; or None."""
    x, views = seen_through(x)
    if is_item(x):
        (made,) = x.all_input_nodes
        found = made.target is PruneEach.operator
        return views, PruneEach.of(made).x if found else None
    if x.target is aten.where.self:  # under a mask that is kept between steps
        return views, argument(x, "self")
    masks = (Prune, PruneInAnyLayout, PruneRagged)
    return views, next((m.of(x).x for m in masks if x.target is m.operator), None)


def _product(
    node: fx.Node, site: ObservedSite, operand: Operand
) -> tuple[list[fx.Node], ObservedSite]:
    """The other tensors of a product of wgrad, and the site with its arguments."""
    if site.role != Role.WGRAD or added(node) is not None or node.kwargs:
        return [], site
    place = _torch.argument_names(node.target).index(operand.arg)
    beside: list[fx.Node] = []
    words: list[Any] = []
    for i, value in enumerate(node.args):
        if i == place:
            words.append([])
        elif isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor):
            words.append([len(beside)])
            beside.append(value)
        elif _is_plain(value):
            words.append({"is": value})
        else:  # a symbolic size
            return [], site
    return beside, replace(site, target=str(node.target), words=tuple(words))


def _result(node: fx.Node) -> fx.Node | None:
    """The result of a product, if nothing but the graph's output reads it.

    Inductor fuses a product into an addition that alone reads it, which would be another rounding.
    """
    is_single = isinstance(node.meta["val"], torch.Tensor)
    results = [node] if is_single else items(node, WEIGHT_GRADIENT)
    if len(results) != 1:
        return None
    (found,) = results
    readers = list(found.users)
    for reader in readers:
        if is_view(reader) or reader.target in CASTS:
            readers += list(reader.users)
        elif reader.op != "output":
            return None
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))
