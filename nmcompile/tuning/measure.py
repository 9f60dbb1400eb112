"""Measure what pruning a product does, while the joint graph of a batch is interpreted.

    forward    y = x w^T         x, w are kept until the backward comes by
    backward   dx = dy w         s = <dy, prune(x) w^T - y>       of the forward product
                                 |(prune(dy) - dy) w|^2           of this one

Each product is multiplied once more for each choice, with the change of its operand in the place
of the operand.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from nmcompile import functional
from nmcompile._torch import argument_names
from nmcompile.gemm import Gemm, Op, OperandKind, Pruning, Role
from nmcompile.graph.aten import INPUT_GRADIENT, WEIGHT_GRADIENT, Convolution, ConvolutionBackward
from nmcompile.inductor.interpreter import PlannedInterpreter
from nmcompile.masks.blocks import by_channel_group
from nmcompile.tuning.flow import SUM
from nmcompile.tuning.products import MARK, Choice, Found, Key, Product, Slot

aten = torch.ops.aten
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Moments:
    """Of one product under one choice, summed over batches.

    ``first``: the change of the loss to first order. ``second``: the sum of its squares over the
    rows of the product. ``noise``: the squared norm of what pruning adds to the result.
    """

    first: float = 0.0
    second: float = 0.0
    noise: float = 0.0


@dataclass
class Signal:
    """Of the result of one product of the backward, summed over batches.

    ``squares``: its squared norm. ``total``: the result itself, of a weight gradient. ``size``: its
    number of elements.
    """

    squares: float = 0.0
    total: Tensor | None = None
    size: int = 0


@dataclass
class Sums:
    """What has been measured so far.

    ``calls``: how often each product ran. ``multiplied``: the FLOPs of all products that ran, the
    additional ones included. ``energies``: of sums of gradients (``flow``), the squared norms of
    both terms and of the result.
    """

    batches: int = 0
    loss: float = 0.0
    moments: dict[tuple[Slot, Choice], Moments] = field(default_factory=dict)
    signals: dict[Slot, Signal] = field(default_factory=dict)
    calls: dict[Slot, int] = field(default_factory=dict)
    multiplied: float = 0.0
    energies: dict[int, list[float]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """All of it in lists, numbers and tensors, as a file keeps it."""
        moments = [[_listed(slot), [str(c.kind), c.format], [m.first, m.second, m.noise]]
                   for (slot, c), m in self.moments.items()]  # fmt: skip
        signals = [[_listed(slot), s.squares, s.total, s.size] for slot, s in self.signals.items()]
        calls = [[_listed(slot), n] for slot, n in self.calls.items()]
        numbers = [self.batches, self.loss, self.multiplied]
        found = {"moments": moments, "signals": signals, "calls": calls, "numbers": numbers}
        return {**found, "energies": self.energies}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Sums:
        """The inverse of ``plain``."""
        batches, loss, multiplied = plain["numbers"]
        return cls(
            batches,
            loss,
            {(_slot(s), Choice(OperandKind(kind), form)): Moments(*numbers)
             for s, (kind, form), numbers in plain["moments"]},
            {_slot(s): Signal(*rest) for s, *rest in plain["signals"]},
            {_slot(s): n for s, n in plain["calls"]},
            multiplied,
            plain["energies"],
        )  # fmt: skip


def _listed(slot: Slot) -> list[Any]:
    return [[*map(str, slot.key)], slot.place, list(slot.shape)]


def _slot(plain: list[Any]) -> Slot:
    (module, module_class, op, role), place, shape = plain
    return Slot(Key(module, module_class, Op(op), Role(role)), place, tuple(shape))


class Measurements:
    """Graphs of a model that measure while they run, or run with some products pruned."""

    def __init__(self) -> None:
        self.found = Found()
        self.sums = Sums()
        self.measuring = False
        self.applied: Mapping[Key, Choice] = {}
        self._kept: dict[int, list[tuple[Any, Arguments]]] = defaultdict(list)
        self._fresh: dict[Slot, Tensor] = {}  # weight gradients of this batch

    def interpreter(self) -> type[fx.Interpreter]:
        """An interpreter of marked graphs that measures into this."""
        session = self

        class Measuring(PlannedInterpreter):
            def __init__(self, gm: fx.GraphModule) -> None:
                super().__init__(gm)
                numbers = [n for node in gm.graph.nodes for n in node.meta.get(MARK, ())]
                roles = {session.found.products[n].gemm.role for n in numbers}
                self.is_backward = bool(roles - {Role.FPROP})

            def run_node(self, n: fx.Node) -> Any:
                if MARK not in n.meta:
                    result = super().run_node(n)
                    if SUM in n.meta and session.measuring:
                        session._add(n.meta[SUM], (*self.fetch_args_kwargs_from_env(n)[0], result))
                    return result
                arguments = self.fetch_args_kwargs_from_env(n)
                products = [session.found.products[number] for number in n.meta[MARK]]
                # What a checkpoint computes once more in the backward has been measured.
                again = self.is_backward and products[0].gemm.role is Role.FPROP
                return session._run(n.target, products, arguments, again)

        return Measuring

    def end_batch(self, loss: float) -> str:
        """The batch is over: its weight gradients are complete. Names what is not finite."""
        for slot, value in self._fresh.items():
            signal, value = self.sums.signals[slot], value.float()
            signal.squares += value.square().sum().item()
            signal.total = value.clone() if signal.total is None else signal.total + value
        self.sums.batches += 1
        self.sums.loss += loss
        self.drop()
        for (slot, _), m in self.sums.moments.items():
            if not all(map(math.isfinite, (m.first, m.second, m.noise))):
                return f"{slot.key.module or '(root)'} {slot.key.role}"
        return ""

    def drop(self) -> None:
        """Forget what was kept of a batch."""
        self._fresh.clear()
        self._kept.clear()

    def _add(self, number: int, values: Sequence[Any]) -> None:
        """Both terms of a sum of gradients, and the result."""
        terms = (values[0], values[1], values[-1])
        found = [v.float().square().sum().item() for v in terms]
        before = self.sums.energies.get(number, [0.0, 0.0, 0.0])
        self.sums.energies[number] = [a + b for a, b in zip(before, found, strict=True)]

    def _run(self, target: Any, products: list[Product], arguments: Arguments, again: bool) -> Any:
        """Run a node: one product, or the two of a convolution's backward."""
        result: Any = None
        for product in products:
            self.sums.multiplied += product.flops
            choice = self.applied.get(product.slot.key)
            way = product.ways.get(choice) if choice is not None else None
            if way is not None:
                value = pruned(target, arguments, way.pruning)
                args, kwargs = _with(target, arguments, way.pruning, value)
                before = target(*arguments[0], **arguments[1]) if result is None else result
                result = _replaced(product, before, target(*args, **kwargs))
        if result is None:
            result = target(*arguments[0], **arguments[1])
        if self.measuring and not again:
            for product in products:
                self._measure(target, product, arguments, result)
        return result

    def _measure(self, target: Any, product: Product, arguments: Arguments, result: Any) -> None:
        if product.gemm.again:  # the same product once more, in a graph for the backward
            return
        slot = product.slot
        self.sums.calls[slot] = self.sums.calls.get(slot, 0) + 1
        if product.gemm.role is Role.FPROP:
            if product.ways:
                self._kept[product.number].append((target, arguments))
            return
        self._score_forward(target, product, arguments)
        self._keep_signal(product, result)
        for choice, way in product.ways.items():
            change = self._change(target, product, arguments, way.pruning)
            self._moments(product, choice).noise += change.float().square().sum().item()

    def _score_forward(self, target: Any, product: Product, arguments: Arguments) -> None:
        """Score the forward product that this one belongs to, unless its sibling has."""
        number, where = product.forward, product.gradient
        if number is None or where is None or not self._kept[number]:
            return
        forward = self.found.products[number]
        called, given = self._kept[number].pop()
        dy = _value(target, arguments, where.arg)
        dy = dy.transpose(-1, -2) if where.transposed else dy
        for choice, way in forward.ways.items():
            change = self._change(called, forward, given, way.pruning)
            # One number for each row of the result: [.., O], or [B, O, pixels] of a convolution.
            of_rows = (dy.float() * change.float()).sum(1 if forward.gemm.op is Op.CONV else -1)
            found = self._moments(forward, choice)
            found.first += of_rows.sum().item()
            found.second += of_rows.square().sum().item()

    def _keep_signal(self, product: Product, result: Any) -> None:
        value = _result(product.gemm, result)
        signal = self.sums.signals.setdefault(product.slot, Signal(size=value.numel()))
        if product.gemm.role is Role.WGRAD:
            before = self._fresh.get(product.slot)
            self._fresh[product.slot] = value if before is None else before + value
        else:
            signal.squares += value.float().square().sum().item()

    def _moments(self, product: Product, choice: Choice) -> Moments:
        return self.sums.moments.setdefault((product.slot, choice), Moments())

    def _change(
        self, target: Any, product: Product, arguments: Arguments, pruning: Pruning
    ) -> Tensor:
        """The change of the result that pruning makes."""
        before = _value(target, arguments, pruning.operand.arg)
        change = pruned(target, arguments, pruning) - before
        args, kwargs = alone(target, _with(target, arguments, pruning, change), product.gemm)
        self.sums.multiplied += product.flops
        return _result(product.gemm, target(*args, **kwargs))


def pruned(target: Any, arguments: Arguments, pruning: Pruning) -> Tensor:
    """The operand as its masks leave it; blocks lie inside one channel group."""
    operand, form = pruning.operand, pruning.format
    x, dims, method = _value(target, arguments, operand.arg), operand.dims, pruning.method
    offsets = None if operand.offsets is None else _value(target, arguments, operand.offsets)
    blocked, inside = by_channel_group(x, dims, dims[0], operand.groups, form.m)
    masked = functional.prune(blocked, form, inside, method, offsets=offsets)
    return masked.reshape(x.shape)


def alone(target: Any, arguments: Arguments, gemm: Gemm) -> Arguments:
    """The product without what it adds, and of a convolution's backward one gradient alone."""
    args, kwargs = list(arguments[0]), dict(arguments[1])
    if kwargs.get("bias") is not None:
        kwargs["bias"] = None
    if target in (aten.addmm.default, aten.baddbmm.default):
        kwargs["beta"] = 0
    elif target is Convolution.operator:
        args[argument_names(target).index("bias")] = None
    elif target is ConvolutionBackward.operator:
        output = INPUT_GRADIENT if gemm.role is Role.DGRAD else WEIGHT_GRADIENT
        args[argument_names(target).index("output_mask")] = [i == output for i in range(3)]
    return tuple(args), kwargs


def _result(gemm: Gemm, result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    found: Tensor = result[INPUT_GRADIENT if gemm.role is Role.DGRAD else WEIGHT_GRADIENT]
    return found


def _replaced(product: Product, result: Any, by: Any) -> Any:
    """The result of a node, with what one of its products gives taken from another run."""
    if isinstance(result, Tensor):
        return by
    output = INPUT_GRADIENT if product.gemm.role is Role.DGRAD else WEIGHT_GRADIENT
    return tuple(by[i] if i == output else value for i, value in enumerate(result))


def _value(target: Any, arguments: Arguments, name: str) -> Tensor:
    value: Tensor = arguments[0][argument_names(target).index(name)]
    return value


def _with(target: Any, arguments: Arguments, pruning: Pruning, value: Tensor) -> Arguments:
    args = list(arguments[0])
    args[argument_names(target).index(pruning.operand.arg)] = value
    return tuple(args), arguments[1]
