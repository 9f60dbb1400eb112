"""The elementwise producers of an operand that its compress kernel can compute itself.

Every value of a prologue has the operand's elements in the operand's order, whatever its shape in
the graph (``[B, T, C]`` for an operand ``[B T, C]``); what is smaller is read as a broadcast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nmcompile.codegen.kernel_spec import Input, Shape, Statement
from nmcompile.codegen.pointwise import COMPARISONS, EXPRESSIONS, pow_expression
from nmcompile.graph.aten import (
    CONSTANTS,
    CONVERSIONS,
    FLAT_VIEWS,
    argument,
    constant_value,
    is_item,
)
from nmcompile.graph.insert import Inserter

aten = torch.ops.aten

#: More operands than these would not fit into a program's registers.
_MOST_INPUTS = 6


class Prologue:
    """The producers of ``base``, an operand of ``shape`` ``(R, C)``; none before ``grow``."""

    def __init__(self, base: fx.Node, shape: Any) -> None:
        self.base = base
        self.rows, self.columns = shape
        self._members: list[fx.Node] = []  # in graph order
        self._leaves: dict[fx.Node, Input] = {}
        self._names = _Names()
        self._read_base()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the kernel reads, in the order of first use."""
        return tuple(self._leaves.values())

    @property
    def statements(self) -> tuple[Statement, ...]:
        """What it computes; the last one is the operand."""
        found = [s for node in self._members if (s := self._statement(node)) is not None]
        return tuple(found)

    @property
    def value(self) -> str:
        """The name of the operand: of the last statement, or of the only input."""
        return self.statements[-1].name if self.statements else self.inputs[0].name

    def flat(self, insert: Inserter, site: fx.Node, given: Input) -> fx.Node:
        """The node of an input, as ``[R, C]`` or flat; inserted at the insertion point."""
        node = next(n for n, i in self._leaves.items() if i is given or i == given)
        if given.shape == "scalar":
            return node
        if given.shape == "full":
            known = isinstance(self.columns, int)
            wanted = [-1, self.columns] if known else [self.rows, -1]
        else:
            wanted = [-1]
        value = node.meta["val"]
        if value.dim() == len(wanted) and (given.shape != "full" or value.shape[1] == self.columns):
            return node
        return insert.reshape(site, node, wanted)

    def grow(self) -> None:
        """Take in every producer that fits; leave the prologue empty if none does."""
        if not isinstance(self.columns, int) and not isinstance(self.rows, int):
            return
        members = self._found()
        leaves = {n for m in members for n in self._operands(m) if n not in members}
        full = [n for n in leaves if self._shape_of(n) == "full"]
        if members and full and len(leaves) <= _MOST_INPUTS:
            self._take(members)

    def _found(self) -> set[fx.Node]:
        """The producers that fit and that nobody else reads; ``base`` may have other readers."""
        members: set[fx.Node] = set()
        wanted = {self.base}
        for node in reversed(list(self.base.graph.nodes)):
            alone = node is self.base or all(user in members for user in node.users)
            if node in wanted and alone and self._fits(node):
                members.add(node)
                wanted.update(self._operands(node))
        return members

    def _take(self, members: set[fx.Node]) -> None:
        self._members = sorted(members)
        self._leaves.clear()
        self._names = _Names()
        for member in self._members:
            for operand in self._operands(member):
                if operand not in members and operand not in self._leaves:
                    self._read(operand)
        if not self.statements:  # conversions and views alone
            self._members = []
            self._leaves.clear()
            self._read_base()

    def _read_base(self) -> None:
        # Without producers all kernels of one dtype are the same one, whatever they read.
        dtype = str(self.base.meta["val"].dtype).removeprefix("torch.")
        self._leaves[self.base] = Input(name="x", shape="full", dtype=dtype, source="x")

    def _read(self, node: fx.Node) -> None:
        dtype = str(node.meta["val"].dtype).removeprefix("torch.")
        shape = self._shape_of(node) or "full"
        name = self._names.of(node)
        self._leaves[node] = Input(name=name, shape=shape, dtype=dtype, source=_source(node))

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a member reads; constants of the graph become literals."""
        return [n for n in node.all_input_nodes if n.target not in CONSTANTS]

    def _fits(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            return False
        if not _same(value.numel(), self.rows * self.columns) or not value.is_contiguous():
            return False
        if not value.is_floating_point() and not (
            value.dtype == torch.bool and node.target in COMPARISONS
        ):
            return False
        if node.target in FLAT_VIEWS:
            return self._shape_of(node.all_input_nodes[0]) == "full"
        known = node.target in CONVERSIONS or self._expression(node) is not None
        alpha = node.kwargs.get("alpha", 1) == 1
        return bool(known and alpha) and all(self._is_input(n) for n in self._operands(node))

    def _is_input(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return (
            isinstance(value, torch.Tensor)
            and (value.is_floating_point() or value.dtype == torch.bool)
            and value.dtype != torch.float64
            and not _is_random(node)  # it is never in memory
            and self._shape_of(node) is not None
        )

    def _shape_of(self, node: fx.Node) -> Shape | None:
        """How the value lies over the operand; None where no kernel reads it so."""
        value = node.meta["val"]
        if not value.is_contiguous():
            return None
        if value.numel() == 1:
            return "scalar"
        if _same(value.numel(), self.rows * self.columns):
            return "full"
        if _same(value.numel(), self.columns) and _same(value.shape[-1], self.columns):
            return "per_column"
        if _same(value.numel(), self.rows) and value.dim() > 1 and value.shape[-1] == 1:
            return "per_row"
        return None

    def _expression(self, node: fx.Node) -> str | None:
        if node.target is aten.pow.Tensor_Scalar:
            return pow_expression(argument(node, "exponent"))
        return EXPRESSIONS.get(node.target)

    def _statement(self, node: fx.Node) -> Statement | None:
        expression = self._expression(node)
        if expression is None:  # a view or a conversion
            return None
        return Statement(
            name=self._names.of(node),
            target=str(node.target),
            expression=expression,
            arguments=tuple(self._argument(a) for a in node.args),
        )

    def _argument(self, value: Any) -> Any:
        while isinstance(value, fx.Node) and value in self._members:
            if self._expression(value) is not None:
                return self._names.of(value)
            value = value.all_input_nodes[0]
        if isinstance(value, fx.Node):
            if value.target in CONSTANTS:
                return constant_value(value)
            return self._leaves[value].name
        return value


class _Names:
    """Names after the operators, numbered inside one kernel: equal layers share a kernel."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, str] = {}

    def of(self, node: fx.Node) -> str:
        if node not in self._known:
            word = _source(node).split(".")[-1 if "." not in _source(node) else 1]
            taken = sum(n.rstrip("0123456789").rstrip("_") == word for n in self._known.values())
            self._known[node] = f"{word}_{taken}"
        return self._known[node]


def _source(node: fx.Node) -> str:
    """Where an input comes from: an operator, or "input" of the graph."""
    while is_item(node):
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "call_function" else "input"


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal, without a guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return str(a) == str(b)


def _is_random(node: fx.Node) -> bool:
    name = str(node.target)
    return any(word in name for word in ("rand", "bernoulli", "iota", "seed"))
