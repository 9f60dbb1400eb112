"""Operand kinds follow data flow alone."""

from __future__ import annotations

import torch
from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.operand_kinds import operand_kinds

KINDS = {"x": OperandKind.ACTIVATION, "w": OperandKind.WEIGHT, "t": OperandKind.GRADIENT}


def kinds_of(function: object) -> dict[str, OperandKind | None]:
    graph = fx.Tracer().trace(function)
    for node in graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = torch.empty(1)
    found = operand_kinds(graph, lambda n: KINDS[n.name])
    return {node.name: kind for node, kind in found.items()}


def test_the_strongest_kind_wins() -> None:
    def function(x, w, t):  # type: ignore[no-untyped-def]
        weight = w * 2
        activation = weight + x
        gradient = activation * t
        return weight, activation, gradient

    found = kinds_of(function)
    assert found["mul"] is OperandKind.WEIGHT
    assert found["add"] is OperandKind.ACTIVATION
    assert found["mul_1"] is OperandKind.GRADIENT


def test_constants_take_no_side() -> None:
    graph = fx.Graph()
    ones = graph.call_function(torch.ones, (3,))
    w = graph.placeholder("w")
    w.meta["val"] = torch.empty(3)
    product = graph.call_function(torch.mul, (ones, w))
    found = operand_kinds(graph, lambda n: OperandKind.WEIGHT)
    assert found[ones] is None
    assert found[product] is OperandKind.WEIGHT


def test_sizes_are_no_operands() -> None:
    graph = fx.Graph()
    size = graph.placeholder("s0")
    size.meta["val"] = 4
    assert operand_kinds(graph, lambda n: OperandKind.ACTIVATION)[size] is None


def test_a_size_of_an_activation_or_gradient_is_no_operand() -> None:
    graph = fx.Graph()
    w, x, t = (graph.placeholder(name) for name in "wxt")
    for node in (w, x, t):
        node.meta["val"] = torch.empty(1)
    expanded = []
    for other in (x, t):
        size = graph.call_function(torch.ops.aten.sym_size.int, (other, 0))
        expanded.append(graph.call_function(torch.ops.aten.expand.default, (w, [size])))
    graph.output(expanded)
    found = operand_kinds(graph, lambda n: KINDS[n.name])
    assert [found[n] for n in expanded] == [OperandKind.WEIGHT] * 2
