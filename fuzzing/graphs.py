"""The masks that stand in the partitioned graphs, against what the report says of each product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fuzzing.case import Find
from fuzzing.products import FALLBACK, FALLBACK_BACKWARD, LEFT
from nmcompile.reason import Code

aten, nm = torch.ops.aten, torch.ops.nm
_VIEWS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def check_masks_in_graphs(graphs: Sequence[fx.Graph], sites: Sequence[Any]) -> None:
    """Each pruned product reads a mask on the right side and dimension, each dense one none.

    Twins are merged after the report was made, and checkpointed products appear twice: what is
    compared are the kinds of products, not their numbers.
    """
    exact = any(s.has(Code.MASKED_RESULT) or s.has(Code.READS_PRUNED) for s in sites)
    nodes = [node for graph in graphs for node in graph.nodes]
    made = {node.name: node for node in nodes if node.op == "call_function"}
    found = {mark for node in nodes for mark in _marks(node, exact, made)}
    wanted = {_wanted(s) for s in sites if s.pruned}
    if missing := wanted - found:
        raise Find("graph", f"pruned in the report, not in the graph: {sorted(map(str, missing))}")
    extra = {f for f in found if f not in wanted}
    if exact:  # these read what fprop pruned, which the report says in words
        extra = set()
    if extra:
        raise Find("graph", f"pruned in the graph, not in the report: {sorted(map(str, extra))}")


def _wanted(site: Any) -> tuple[Any, ...]:
    return _kind(str(site.role), str(site.pruned), site.format, site.method)


def _kind(role: str, operand: str, form: str, method: str) -> tuple[str, str, str, str]:
    """One transposable mask serves both roles, and Inductor keeps one of two that are equal."""
    return ("both" if method == "transposable" else role, operand, form, method)


def _marks(node: fx.Node, exact: bool, made: dict[str, fx.Node]) -> list[tuple[Any, ...]]:
    """What the masks say that a product reads: (role, operand, format, method).

    What the forward saved is a placeholder of the backward, by the name of what ``made`` it.
    """
    if node.op != "call_function":
        return []
    if node.target in LEFT:
        left = LEFT[node.target]
        operands: Any = node.args[left : left + 2]
    elif node.target is aten.convolution.default:
        operands = node.args[:2]
    elif node.target is aten.convolution_backward.default:
        operands = node.args[:3]
    elif node.target is nm.mm.default:
        operands = node.args[:1]
    elif str(node.target) == FALLBACK:
        operands = node.args[:2]
    elif str(node.target) == FALLBACK_BACKWARD or node.target is nm.grouped_gradient.default:
        operands = (*node.args[:2], node.args[3])
    else:
        return []
    marks = []
    for position, operand in enumerate(operands):
        mask = operand
        while mask.target in _VIEWS or (mask.target is not None and _is_part(mask)):
            mask = mask.all_input_nodes[0]
        if mask.target is nm.compress.default:
            source = mask.args[0]
            if source.op == "placeholder":  # names are of one graph, and of what it saved
                source = made.get(source.name, source)
            # Masked by a method that nm.compress does not have; not what fprop pruned, read again.
            if source.target is nm.prune.default and _roles(source) & {*_roles(mask), "both"}:
                mask = source
        if mask.target in (nm.prune.default, nm.prune_ragged.default, nm.compress.default):
            parsed = _parsed(mask)
            marks += parsed
            # What fprop pruned may be read again by the backward.
            again = exact and parsed[0][0] in ("fprop", "both")
            if mask.target is not nm.compress.default and not again:
                _check_dims(node, position, mask)
    return marks


def _is_part(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _parsed(mask: fx.Node) -> list[tuple[Any, ...]]:
    return [_parse(part) for part in str(mask.meta["nm"]).split(" + ")]


def _roles(mask: fx.Node) -> set[str]:
    return {role for role, *_ in _parsed(mask)}


def _parse(mark: str) -> tuple[Any, ...]:
    role, operand, form, method = mark.split(" @ ")[0].split(" ")
    return _kind(role, operand, form, method)


def _check_dims(product: fx.Node, position: int, mask: fx.Node) -> None:
    """Blocks of a matrix product run along the dimension that it reduces over."""
    ragged = mask.target is nm.prune_ragged.default
    by_group = _reduces_over_groups(product)
    if ragged != by_group:
        raise Find("graph", f"{product}: blocks {'do not ' * by_group}start anew with each group")
    if ragged and mask.args[1] is not product.args[2]:
        raise Find("graph", f"{product}: the groups of operand {position} are {mask.args[1]}")
    *_, dims, method = mask.args
    if product.target not in LEFT or method == "transposable":
        return
    rank = mask.meta["val"].dim()
    if ([dims] if ragged else list(dims)) != [rank - 1 - position]:
        raise Find("graph", f"{product}: operand {position} is pruned along {dims}")


def _reduces_over_groups(product: fx.Node) -> bool:
    if product.target is aten._grouped_mm.default:
        return all(a.meta["val"].dim() == 2 for a in product.args[:2])  # type: ignore[union-attr]
    return product.target is nm.grouped_gradient.default and bool(product.args[4])
