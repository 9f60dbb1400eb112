"""How an operand came to 8-bit floating point: from which value, by which scale, who undoes it.

    scale = 448 / amax(abs(x))
    q     = clamp(x * scale, -448, 448) as float8
    _scaled_mm(q, w, 1 / scale, ...)            the product undoes the scale,
    mm(q as float32 / scale, w)                 the operand does (an emulated product),
    _scaled_mm(q, w, 1, ...) * (1 / scale)      or a reader of the product

A mask belongs on ``x``: then the product reads what is N:M and a float8 number, at the scale of
what is left. A mask of ``q``, or behind it, would raise values off the grid and past its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import size_hint
from nmcompile.graph.aten import (
    CASTS,
    CONSTANTS,
    FLAT_VIEWS,
    TRANSPOSES,
    VIEWS,
    argument,
    constant_value,
    is_product,
    is_scaled_product,
    optional_argument,
    scale_name,
)

aten = torch.ops.aten

FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
_WIDE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Views that another shape undoes.
RESHAPES = (*FLAT_VIEWS, aten.squeeze.dim, aten.unsqueeze.default)
_LAYOUTS = (
    *RESHAPES,
    *TRANSPOSES,
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
)
_CLAMPS = (aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
_FACTORS = (aten.mul.Tensor, aten.div.Tensor)
_AMAX = (aten.amax.default, aten.max.default)
#: What computes a scale from largest magnitudes, beside elementwise operators.
_OF_SCALES = (
    *VIEWS,
    *CASTS,
    aten.clone.default,
    aten.repeat.default,
    aten.select.int,
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.wait_tensor.default,
)


@dataclass(frozen=True)
class Scale:
    """How a scale is computed.

    ``node`` is the scale itself, ``nodes`` are those that compute it, but for constants.
    ``tensors`` are those whose largest magnitudes it follows. ``unknown`` is an operator among its
    sources that could be anything.
    """

    node: fx.Node
    nodes: frozenset[fx.Node]
    tensors: frozenset[fx.Node]
    unknown: fx.Node | None

    def shares(self, other: Scale) -> bool:
        """Whether the two follow from one value, which is no mere constant."""
        return not self.nodes.isdisjoint(other.nodes)


@dataclass(frozen=True)
class Reader:
    """A reader of a product's result, which multiplies or divides by ``by`` if it is there."""

    node: fx.Node
    by: Scale | None


@dataclass(frozen=True)
class Cast:
    """The way from a value in high precision to the operand of a product.

    ``source`` is the value, ``steps`` lead from it to the operand in the order of the data.
    ``scale`` multiplies or divides on the way; ``scales`` are the others that belong to the
    operand, those by which the product or a step multiplies. ``undo`` are the readers of the
    product that undo a scale that follows the source.
    """

    source: fx.Node
    steps: tuple[fx.Node, ...]
    scale: Scale | None = None
    scales: tuple[Scale, ...] = ()
    undo: tuple[Reader, ...] = ()

    @property
    def is_dynamic(self) -> bool:
        """Whether the scale follows the source; otherwise it comes from somewhere else."""
        return self.scale is not None and self.source in self.scale.tensors


@dataclass(frozen=True)
class NoCast:
    """The value in high precision of an 8-bit operand is not known; ``why`` says so of it."""

    why: str


def is_float8(node: fx.Node) -> bool:
    """Whether the node is a tensor in 8-bit floating point."""
    return _dtype(node) in FLOAT8


def cast_of(product: fx.Node, arg: str) -> Cast | NoCast | None:
    """How the operand ``arg`` of a product came to 8 bits; None where it never was in 8 bits.

    None, too, for an operand in high precision whose 8-bit values come from elsewhere.
    """
    steps: list[fx.Node] = []
    operand, factors = argument(product, arg), list[fx.Node]()
    value = _to_eight_bits(operand, steps, factors)
    if not is_float8(value):
        held = str(_dtype(operand)).removeprefix("torch.")
        return NoCast(f"it holds {held} values") if is_scaled_product(product) else None
    before = _before_cast(value, steps)
    if isinstance(before, NoCast):
        return before if is_scaled_product(product) else None
    inside = [scale_of(s) for s in [*_scales(product, arg), *factors]]
    behind = _behind(product)
    source, scale = _source(before, steps, [*inside, *(b.by for b in behind if b.by)])
    if _is_reshaped_after_padding(steps):
        return NoCast("it is padded and then reshaped")
    found = Cast(source, tuple(reversed(steps)), scale, tuple(inside))
    if scale is None:
        why = _other_scale(source, inside)
        return found if why is None else NoCast(why)
    if scale.unknown is not None:
        return NoCast(f"its scale is computed by {scale.unknown.target}")
    if not found.is_dynamic:
        return found
    undo = tuple(b for b in behind if b.by is not None and b.by.shares(scale))
    if not any(map(scale.shares, inside)) and len(undo) < len(behind):
        return NoCast("not all that read the product undo its scale")
    return replace(found, undo=undo)


def source_of(product: fx.Node, arg: str) -> fx.Node:
    """The operand, or what it was before it was cast to 8 bits."""
    cast = cast_of(product, arg) if is_product(product) else None
    return cast.source if isinstance(cast, Cast) else argument(product, arg)


def scale_of(node: fx.Node) -> Scale:
    """How a scale is computed, back to the tensors whose largest magnitudes it follows."""
    nodes: set[fx.Node] = set()
    tensors: list[fx.Node] = []
    unknown: list[fx.Node] = []
    stack = [node]
    while stack:
        current = stack.pop()
        if current in nodes:
            continue
        if current.op == "call_function" and not current.all_input_nodes:
            continue  # a constant
        nodes.add(current)
        if current.target in _AMAX:
            measured = _measured(current, nodes)
            (stack if measured.target in _AMAX else tensors).append(measured)
        elif _computes_scales(current):
            stack.extend(current.all_input_nodes)
        elif current.op == "call_function":
            unknown.append(current)
    return Scale(node, frozenset(nodes), frozenset(tensors), min(unknown, default=None))


def _scales(product: fx.Node, arg: str) -> list[fx.Node]:
    """The scales of an operand that the product takes as arguments."""
    name = scale_name(product, arg)
    given = argument(product, name) if name else []
    return list(given) if isinstance(given, (list, tuple)) else [given]


# -- the way back, step by step ------------------------------------------------------------------


def _to_eight_bits(node: fx.Node, steps: list[fx.Node], factors: list[fx.Node]) -> fx.Node:
    """From an operand in high precision to the 8-bit values that it was made of, if it was."""
    while not is_float8(node):
        factor = _factor(node)
        if _is_layout(node) or node.target in CASTS:
            before = node.all_input_nodes[0]
        elif factor is not None and (factor.by is None or not factors):
            before = factor.of
            factors += [factor.by] if factor.by is not None else []
        else:
            break
        steps.append(node)
        node = before
    return node


def _before_cast(node: fx.Node, steps: list[fx.Node]) -> fx.Node | NoCast:
    """From 8-bit values to what was cast to them."""
    while _is_layout(node):
        steps.append(node)
        node = node.all_input_nodes[0]
    if node.target not in CASTS:
        made = (
            "comes into this graph" if node.op != "call_function" else f"is made by {node.target}"
        )
        return NoCast(f"it {made} in 8 bits")
    steps.append(node)
    (before,) = node.all_input_nodes
    return NoCast("it is cast from 8 bits to 8 bits") if is_float8(before) else before


def _source(
    node: fx.Node, steps: list[fx.Node], undoing: list[Scale]
) -> tuple[fx.Node, Scale | None]:
    """From what was cast to the value before clamp and scale."""
    largest = torch.finfo(_dtype(steps[-1])).max
    scale: Scale | None = None
    while True:
        in_cast = scale is None
        factor = _factor(node) if in_cast else None
        if _is_layout(node) or _is_widening(node) or (in_cast and _saturates(node, largest)):
            before = node.all_input_nodes[0]
        elif factor is not None and factor.by is None:
            before = factor.of
        elif factor is not None and factor.by is not None:
            by = scale_of(factor.by)
            if not any(map(by.shares, undoing)):
                return node, None
            before, scale = factor.of, by
        else:
            return node, scale
        steps.append(node)
        node = before


def _other_scale(source: fx.Node, undoing: list[Scale]) -> str | None:
    """Why what multiplies ``source`` may be a scale that is not known as one; None if it is not."""
    factor = _factor(source)
    by = scale_of(factor.by) if factor is not None and factor.by is not None else None
    if by is None:
        return None
    if by.tensors:
        return "nothing is seen to undo its scale"
    if by.unknown is not None and any(s.nodes for s in undoing):
        return f"its scale is computed by {by.unknown.target}"
    return None


def _behind(product: fx.Node) -> list[Reader]:
    """Who reads the result of a product, behind views and casts."""
    found, stack = [], [product]
    while stack:
        value = stack.pop()
        for user in value.users:
            if _is_layout(user) or user.target in CASTS or _is_masking(user, value):
                stack.append(user)
                continue
            others = [n for n in user.all_input_nodes if n is not value]
            by = scale_of(others[0]) if user.target in _FACTORS and others else None
            found.append(Reader(user, by))
    return found


# -- what an operator is -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Factor:
    """A product of a tensor and something smaller: ``by`` is None for a number."""

    of: fx.Node
    by: fx.Node | None


def _factor(node: fx.Node) -> _Factor | None:
    if node.target not in _FACTORS:
        return None
    one, other = argument(node, "self"), argument(node, "other")
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return _Factor(one, None) if isinstance(one, fx.Node) else None
    size = _numel(node)
    if _numel(one) == size and _numel(other) < size:
        return _Factor(one, other)
    if node.target is aten.mul.Tensor and _numel(other) == size and _numel(one) < size:
        return _Factor(other, one)
    return None


def _measured(amax: fx.Node, nodes: set[fx.Node]) -> fx.Node:
    """The tensor whose largest magnitude it is; what is in between joins ``nodes``."""
    node = amax.all_input_nodes[0]
    while node.target is aten.abs.default or _is_layout(node) or _is_widening(node):
        nodes.add(node)
        node = node.all_input_nodes[0]
    return node


def _computes_scales(node: fx.Node) -> bool:
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise or node.target in _OF_SCALES


def _is_layout(node: fx.Node) -> bool:
    """Whether the node has its input's elements, perhaps in another order and zeros behind them."""
    return node.target in _LAYOUTS or is_padding(node)


def is_padding(node: fx.Node) -> bool:
    """Whether the node adds zeros at the ends of dimensions, never at their beginning."""
    if node.target is not aten.constant_pad_nd.default:
        return False
    widths = argument(node, "pad")
    return optional_argument(node, "value", 0) == 0 and not any(widths[::2])


def _is_masking(node: fx.Node, value: fx.Node) -> bool:
    """Whether the node is the value, or zero where a mask says so."""
    if node.target is not aten.where.self or argument(node, "self") is not value:
        return False
    other = argument(node, "other")
    return other.target in CONSTANTS and constant_value(other) == 0


def _is_reshaped_after_padding(steps: list[fx.Node]) -> bool:
    padded = False
    for step in reversed(steps):
        padded |= is_padding(step)
        if padded and step.target in RESHAPES:
            return True
    return False


def _is_widening(node: fx.Node) -> bool:
    """Whether the node is a cast that keeps every value as it is."""
    if node.target not in CASTS:
        return False
    before, after = _dtype(node.all_input_nodes[0]), _dtype(node)
    return before in _WIDE and after in _WIDE and torch.promote_types(before, after) is after


def _saturates(node: fx.Node, largest: float) -> bool:
    """Whether the node clamps to the range of an 8-bit type, and so is part of the cast."""
    if node.target not in _CLAMPS:
        return False
    names = {aten.clamp_min.default: ["min"], aten.clamp_max.default: ["max"]}
    given = [optional_argument(node, n) for n in names.get(node.target, ["min", "max"])]
    return all(b is None or abs(b) == largest for b in given)


def _numel(node: fx.Node) -> int:
    return prod(map(size_hint, node.meta["val"].shape))


def _dtype(node: fx.Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)
