"""Who reads a tensor only where a gradient is not masked to zero."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.codegen.pointwise import EXPRESSIONS
from nmcompile.graph.aten import (
    ALIASES,
    CONSTANTS,
    CONVERSIONS,
    constant_value,
    seen_through,
)
from nmcompile.graph.insert import in_backward

aten = torch.ops.aten

_ALIKE = (*CONVERSIONS, *ALIASES, aten.neg.default)


def is_elementwise(node: fx.Node) -> bool:
    """Whether the node computes each element from the elements at the same place."""
    pointwise = (*EXPRESSIONS, *CONVERSIONS, *ALIASES, aten.pow.Tensor_Scalar)
    return node.op == "call_function" and node.target in pointwise


def elementwise_ancestors(base: fx.Node) -> list[fx.Node]:
    """Forward values of base's size, in base's order, that base follows from; base included.

    The first values that are not elementwise themselves are part of it, and so are views of all.
    """
    size = base.meta["val"].numel()
    found: list[fx.Node] = []
    stack = [base]
    while stack:
        node = stack.pop()
        value = node.meta.get("val")
        if node in found or not isinstance(value, torch.Tensor):
            continue
        constant = node.target in CONSTANTS
        if not constant and (str(value.numel()) != str(size) or not value.is_contiguous()):
            continue
        found.append(node)
        if is_elementwise(node):
            stack.extend(node.all_input_nodes)
        stack.extend(u for u in node.users if u.target in ALIASES and not in_backward(u))
    return sorted(found)


def origin(node: fx.Node) -> fx.Node:
    """The value that a chain of views keeps the order of."""
    return seen_through(node, lambda n: n.target in ALIASES)[0]


def path(node: fx.Node, known: Collection[fx.Node]) -> list[fx.Node] | None:
    """The elementwise nodes that compute ``node`` from ``known`` and constants, in order.

    None where anything else is needed; empty where the node itself is known.
    """
    needed: set[fx.Node] = set()
    stack = [node]
    while stack:
        value = stack.pop()
        if value in known or value in needed:
            continue
        if value.target not in CONSTANTS and not is_elementwise(value):
            return None
        needed.add(value)
        stack.extend(value.all_input_nodes)
    return sorted(needed)


class MaskedReaders:
    """The backward nodes behind a masked gradient, and those that read ``saved`` tensors.

    ``roots`` are those of ``saved`` that the others follow from.

    ``gradient`` nodes are linear in the masked gradient, element by element, so zero where it is;
    ``derived`` nodes follow from the saved tensors alone.
    """

    def __init__(self, masked: fx.Node, saved: list[fx.Node], roots: list[fx.Node]) -> None:
        self._saved, self._roots = saved, roots
        self.gradient = {masked}
        self.derived: set[fx.Node] = set()
        size = str(masked.meta["val"].numel())
        for node in masked.graph.nodes:
            if not in_backward(node) or not is_elementwise(node) or node is masked:
                continue
            if str(node.meta["val"].numel()) != size:  # an outer product is not element by element
                continue
            if node > masked and self._is_linear(node):
                self.gradient.add(node)
            elif any(n in saved or n in self.derived for n in node.all_input_nodes):
                self.derived.add(node)

    def all_multiply_the_gradient(self) -> bool:
        """Whether nothing of the saved tensors matters where the gradient is masked."""
        readers = {u for s in self._saved for u in s.users if in_backward(u)}
        readers.update(u for d in self.derived for u in d.users)  # the graph's output too
        inside = all(u in self.gradient or u in self.derived for u in readers)
        with _torch.real_tensors():
            return inside and self._finite_at_zero()

    def _is_linear(self, node: fx.Node) -> bool:
        inputs = [a for a in node.args if isinstance(a, fx.Node)]
        hit = [a in self.gradient for a in inputs]
        if node.target in _ALIKE:
            return hit[0]
        if node.target is aten.mul.Tensor:
            return any(hit)
        if node.target is aten.div.Tensor:
            return hit[0] and not any(hit[1:])
        if node.target in (aten.add.Tensor, aten.sub.Tensor):
            return len(hit) == 2 and all(hit)
        return False

    def _finite_at_zero(self) -> bool:
        """Are derived values finite where the roots are zero? A product with 0 must stay 0."""
        zero = torch.zeros((), dtype=torch.float64)
        known: dict[fx.Node, Any] = dict.fromkeys(self._roots, zero)
        for node in sorted({*self._saved, *self.derived}):
            steps = path(node, known)
            if steps is None:
                return False
            for step in steps:
                known[step] = self._evaluate(step, known)
        return all(bool(torch.isfinite(known[n].double())) for n in self.derived)

    @staticmethod
    def _evaluate(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if node.target in CONSTANTS:
            return torch.tensor(constant_value(node), dtype=torch.float64)
        if node.target in (*CONVERSIONS, *ALIASES):
            return known[node.all_input_nodes[0]]
        args = fx.node.map_arg(node.args, functools.partial(dict.__getitem__, known))
        return node.target(*args)  # type: ignore[operator, misc]
