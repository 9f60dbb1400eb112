"""The elementwise producers of operands that their compress kernel computes itself.

Every value of a prologue has the operand's elements in the operand's order in memory, whatever its
shape in the graph (``[B, T, C]``, or ``[N, C, H, W]`` channels-last, for an operand ``[R, C]``);
what is smaller is read as a broadcast. Which producers these are is a question of bytes: those
whose inputs are the fewest to read, where an input counts twice that would be written for the
kernel alone. That is a minimum cut between the operands and what no kernel can compute.

What is unpacked from a packed operand is read as it is packed, by its own bytes, and nothing that
follows from it is written for a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx
import torch
from torch import fx

from nmcompile import _torch
from nmcompile.codegen.kernel_spec import Input, Shape, Statement
from nmcompile.codegen.pointwise import COMPARISONS, EXPRESSIONS, pow_expression
from nmcompile.graph.aten import (
    CONSTANTS,
    CONVERSIONS,
    argument,
    constant_value,
    is_item,
)
from nmcompile.graph.insert import Inserter
from nmcompile.graph.memory import Memory, bytes_of, is_inlined
from nmcompile.graph.order import Order, is_dense, is_expanded, is_same_memory, memory_order
from nmcompile.graph.unpacked import Unpacked, as_input, bytes_read, is_unpadded, unpacked

aten = torch.ops.aten

#: More operands than these would not fit into a program's registers.
_MOST_INPUTS = 6
_WIDEST = 2  # bytes of an element of an input that the graph itself computes


class Prologue:
    """What a kernel reads and computes to have ``bases``, operands of ``shape`` ``(R, C)``.

    Without ``memory`` it reads the operands as they are. ``bytes`` is what the kernel reads, and
    what is written for it alone.
    """

    def __init__(self, bases: Sequence[fx.Node], shape: Any, memory: Memory | None = None) -> None:
        self.bases = tuple(bases)
        self.order = Order(*shape)
        self._members: list[fx.Node] = []  # in graph order
        self._leaves: dict[fx.Node, Input] = {}
        self._names = _Names()
        self.bytes = 0
        if memory is None or not self._grow(memory):
            for base in self.bases:
                self._read_alone(base)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the kernel reads, in the order of first use."""
        return tuple(self._leaves.values())

    @property
    def statements(self) -> tuple[Statement, ...]:
        """What it computes."""
        found = [s for node in self._members if (s := self._statement(node)) is not None]
        return tuple(found)

    @property
    def members(self) -> tuple[fx.Node, ...]:
        """The nodes that the kernel computes, in graph order."""
        return tuple(self._members)

    @property
    def leaves(self) -> tuple[fx.Node, ...]:
        """The nodes that the kernel reads, each once."""
        return tuple(self._leaves)

    def value(self, base: fx.Node) -> str:
        """The name of an operand: of a statement or of an input."""
        return str(self._argument(base))

    def flat(self, insert: Inserter, site: fx.Node, given: Input) -> fx.Node:
        """The node of an input, as ``[R, C]`` or flat; inserted at the insertion point."""
        node = next(n for n, i in self._leaves.items() if i is given or i == given)
        if given.shape == "scalar":
            return node
        call = self._packed(node)
        if call is not None:
            packed: fx.Node = call.packed
            return packed
        if given.shape == "full":
            known = isinstance(self.order.columns, int)
            wanted = [-1, self.order.columns] if known else [self.order.rows, -1]
        else:
            wanted = [-1]
        value = node.meta["val"]
        as_wanted = given.shape != "full" or str(value.shape[-1]) == str(self.order.columns)
        if value.dim() == len(wanted) and value.is_contiguous() and as_wanted:
            return node
        rows = insert.permute(site, node, memory_order(value))
        return insert.reshape(site, rows, wanted)

    # -- which producers --------------------------------------------------------------------------

    def _grow(self, memory: Memory) -> bool:
        """Take in the producers that make the kernel read the fewest bytes, where any fit."""
        if not isinstance(self.order.columns, int) and not isinstance(self.order.rows, int):
            return False
        fitting = self._fitting()
        if not all(base in fitting for base in self.bases):
            return False
        leaves = self._cut(fitting, memory)
        members = self._between(leaves, fitting)
        full = [n for n in leaves if self.order.is_whole(n)]
        if not members or not self._gives_sizes(full) or len(leaves) > _MOST_INPUTS:
            return False
        self._members = sorted(members)
        reads = [(o, m) for m in self._members for o in self._operands(m) if o not in members]
        shapes = {(operand, self.order.lies(operand, member)) for operand, member in reads}
        # Conversions and views alone are no prologue; one value is not read in two ways.
        if len(shapes) > len(leaves) or not any(map(self._expression, self._members)):
            self._members = []
            return False
        for operand, member in reads:
            if operand not in self._leaves:
                self._read(operand, self.order.lies(operand, member))
        self.bytes = self._read_bytes(leaves, memory)
        return True

    def _gives_sizes(self, full: list[fx.Node]) -> bool:
        """Whether ``(R, C)`` can be told from these inputs."""
        calls = [self._packed(node) for node in full]
        return any(call is None or is_unpadded(call) for call in calls)

    def _packed(self, node: fx.Node) -> Unpacked | None:
        """How the value is unpacked, where the kernel reads what is packed instead."""
        return unpacked(node) if self.order.has_shape(node) else None

    def _cost(self, node: fx.Node, memory: Memory) -> int:
        """Bytes of reading the value, and of writing it where that is for the kernel alone.

        One byte more decides between a value that would be written and what it is computed from.
        """
        call = self._packed(node)
        if call is not None:
            return bytes_read(call)
        return bytes_of(node) if memory.holds(node) else 2 * bytes_of(node) + 1

    def _read_bytes(self, leaves: set[fx.Node], memory: Memory) -> int:
        """Bytes of all inputs; of an operand and its mask, which lie in one tensor, one counts."""
        found: dict[fx.Node, int] = {}
        for leaf in leaves:
            call = self._packed(leaf)
            tensor = leaf if call is None else call.packed
            found[tensor] = max(found.get(tensor, 0), self._cost(leaf, memory))
        return sum(found.values())

    def _fitting(self) -> set[fx.Node]:
        """Every producer of the bases that a kernel could compute."""
        found: set[fx.Node] = set()
        stack = list(self.bases)
        while stack:
            node = stack.pop()
            if node not in found and self._fits(node):
                found.add(node)
                stack += self._operands(node)
        return found

    def _cut(self, fitting: set[fx.Node], memory: Memory) -> set[fx.Node]:
        """The leaves that move the fewest bytes; none where every choice reads what cannot be.

        Every node is two, with an edge between them whose capacity is the cost of reading it.
        """
        flow = networkx.DiGraph()
        for base in self.bases:
            flow.add_edge((base, "out"), "kernel")
        for node in fitting:
            for operand in self._operands(node):
                flow.add_edge((operand, "out"), (node, "in"))
                if operand not in fitting:
                    flow.add_edge("memory", (operand, "in"))
        unpacking = self._unpacking(fitting)
        for node in {n for n, _ in filter(_is_pair, flow)}:
            # What a view looks at is read rather than the view: another one may look there too.
            view = node in fitting and is_same_memory(node)
            unpacked_for_it = node in unpacking and not memory.holds(node)
            if node in self.bases or view or unpacked_for_it or not self._is_input(node):
                flow.add_edge((node, "in"), (node, "out"))
            else:
                flow.add_edge((node, "in"), (node, "out"), capacity=self._cost(node, memory))
        try:
            _, (left, _) = networkx.minimum_cut(flow, "memory", "kernel")
        except networkx.NetworkXUnbounded:
            return set()
        return {n for n, _ in filter(_is_pair, left) if (n, "out") not in left}

    def _unpacking(self, fitting: set[fx.Node]) -> set[fx.Node]:
        """What is computed from packed operands: Inductor would have them unpacked for it."""
        found: set[fx.Node] = set()
        for node in sorted(fitting):
            if any(n in found or self._packed(n) is not None for n in self._operands(node)):
                found.add(node)
        return found

    def _between(self, leaves: set[fx.Node], fitting: set[fx.Node]) -> set[fx.Node]:
        """What is computed from the leaves."""
        found: set[fx.Node] = set()
        stack = list(self.bases) if leaves else []
        while stack:
            node = stack.pop()
            if node not in leaves and node in fitting and node not in found:
                found.add(node)
                stack += self._operands(node)
        return found

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a member reads; constants of the graph become literals."""
        return [n for n in node.all_input_nodes if n.target not in CONSTANTS]

    def _fits(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            return False
        if not self.order.is_of_size(value) or value.dtype == torch.float64:
            return False
        if not value.is_floating_point() and not (
            value.dtype == torch.bool and node.target in COMPARISONS
        ):
            return False
        if is_expanded(node):
            return self.order.is_broadcast(node)
        if not is_dense(value):
            return False
        if is_same_memory(node):
            return self.order.is_whole(node.all_input_nodes[0])
        if node.target not in CONVERSIONS and self._expression(node) is None:
            return False
        alpha = (*node.args[2:], node.kwargs.get("alpha", 1)) if _has_alpha(node) else ()
        return all(factor == 1 for factor in alpha) and all(
            self.order.lies(n, node) is not None and not _is_random(n) for n in self._operands(node)
        )

    def _is_input(self, node: fx.Node) -> bool:
        """Whether a kernel may read the value from memory."""
        value = node.meta["val"]
        own = not is_inlined(node)  # the model's, or the result of a product
        return (
            bool(self.order.by_size(node))
            and (own or value.element_size() <= _WIDEST or not self.order.is_whole(node))
            and not _is_random(node)  # it is never in memory
        )

    # -- its statements ---------------------------------------------------------------------------

    def _read_alone(self, base: fx.Node) -> None:
        # Without producers all kernels of one dtype are the same one, whatever they read.
        dtype = str(base.meta["val"].dtype).removeprefix("torch.")
        name = f"x{len(self._leaves) or ''}"
        self._leaves[base] = Input(name=name, shape="full", dtype=dtype, source="x")

    def _read(self, node: fx.Node, shape: Shape | None) -> None:
        dtype = str(node.meta["val"].dtype).removeprefix("torch.")
        assert shape is not None
        name, call = self._names.of(node), self._packed(node)
        given = Input(name=name, shape=shape, dtype=dtype, source=_source(node))
        self._leaves[node] = given if call is None else as_input(call, name)

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


def _is_pair(vertex: Any) -> bool:
    return isinstance(vertex, tuple)


def _has_alpha(node: fx.Node) -> bool:
    return "alpha" in _torch.argument_names(node.target)


def _is_random(node: fx.Node) -> bool:
    name = str(node.target)
    return any(word in name for word in ("rand", "bernoulli", "iota", "seed"))
