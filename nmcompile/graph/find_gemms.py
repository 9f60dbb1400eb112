"""Find every matrix product and convolution of a graph; mutate nothing.

    addmm(bias, x [T,I], w_t [I,O])        -> fprop, x reduces along dim 1, w_t along dim 0
    mm(dy [T,O], w [O,I])                  -> dgrad
    mm(dy_t [O,T], x [T,I])                -> wgrad
    convolution_backward(dy, x, w, ...)    -> dgrad and wgrad, two sites on one node
    _grouped_mm(x [S,I], w [E,I,O], offs)  -> a product of which each row has its own matrix

A product with a gradient operand gets its role in ``backward_roles``; one with an operand of
unknown kind gets a guess, and the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import Gemm, Op, Operand, OperandKind, Role, Unknown
from nmcompile.graph.aten import (
    INPUT_GRADIENT,
    OPERANDS,
    TRANSPOSES,
    WEIGHT_GRADIENT,
    Convolution,
    ConvolutionBackward,
    argument,
    cast_base,
    is_view_or_cast,
    operands,
)
from nmcompile.graph.backward_roles import assign_roles
from nmcompile.graph.convolution import Geometry
from nmcompile.graph.float8 import source_of
from nmcompile.graph.gathered import gather_of
from nmcompile.graph.grouped import grouped_products, is_grouped
from nmcompile.graph.module_path import module_path
from nmcompile.graph.operand_kinds import Kinds
from nmcompile.reason import Reason

WEIGHT, ACTIVATION = OperandKind.WEIGHT, OperandKind.ACTIVATION


def find_gemms(graph: fx.Graph, kinds: Kinds, doubt: Reason | None = None) -> list[Gemm]:
    """Every product of the graph in graph order, with role, operands, sizes and module path.

    ``doubt``: why no role in this graph can be derived.
    """
    finders: dict[Any, Callable[[fx.Node, Kinds], list[Gemm]]] = {
        **dict.fromkeys(OPERANDS, _matmul),
        Convolution.operator: _convolution,
        ConvolutionBackward.operator: _convolution_backward,
    }
    found: list[Gemm] = []
    for node in graph.nodes:
        if node.op == "call_function":
            finder = _grouped if is_grouped(node) else finders.get(node.target)
            found += finder(node, kinds) if finder else []
    return assign_roles(found, kinds, doubt)


def _matmul(node: fx.Node, kinds: Kinds) -> list[Gemm]:
    (a, b), (left, right) = operands(node), OPERANDS[node.target]
    a_shape, b_shape = a.meta["val"].shape, b.meta["val"].shape
    rank = len(a_shape)
    batch = a_shape[0] if rank == 3 else 1
    m, k = a_shape[-2], a_shape[-1] * _numbers_a_place(a)
    tile = (rank - 2, rank - 1)
    a, b = source_of(node, left), source_of(node, right)  # a cast for the backward is no new value
    lhs = Operand(_matrix_kind(kinds, a), left, (rank - 1,), _static(k), tile_dims=tile)
    rhs = Operand(_matrix_kind(kinds, b), right, (rank - 2,), _static(k), tile_dims=tile)
    if lhs.kind is rhs.kind is WEIGHT and _is_linear_layer(a, b):
        lhs = replace(lhs, kind=ACTIVATION)  # embedded positions or learned queries, in a layer
    has_one_weight = (lhs.kind is WEIGHT) != (rhs.kind is WEIGHT)
    op = Op.LINEAR if has_one_weight else Op.MATMUL
    return [_gemm(kinds, node, op, Role.FPROP, lhs, rhs, (batch, m, b_shape[-1], k))]


def _numbers_a_place(operand: fx.Node) -> int:
    return 2 if operand.meta["val"].dtype is torch.float4_e2m1fn_x2 else 1


def _is_linear_layer(x: fx.Node, w_t: fx.Node) -> bool:
    """Is this a value computed from parameters, times a parameter's transpose, as F.linear has it?

    Not so a product of two parameters, such as a low-rank update: its result is a weight.
    """
    transposed = False
    while w_t.op == "call_function" and is_view_or_cast(w_t):
        transposed ^= w_t.target in TRANSPOSES
        w_t = w_t.all_input_nodes[0]
    return transposed and w_t.op != "call_function" and cast_base(x).op == "call_function"


def _grouped(node: fx.Node, kinds: Kinds) -> list[Gemm]:
    found = []
    for p in grouped_products(node, lambda operand: _kind(kinds, operand)):
        has_one_weight = (p.lhs.kind is WEIGHT) != (p.rhs.kind is WEIGHT)
        op = Op.GROUPED if has_one_weight or p.role is not Role.FPROP else Op.MATMUL
        found.append(_gemm(kinds, node, op, p.role, p.lhs, p.rhs, p.sizes))
    return found


def _convolution(node: fx.Node, kinds: Kinds) -> list[Gemm]:
    conv, call = Geometry.of(node), Convolution.of(node)
    lhs = conv.channels_operand(_kind(kinds, call.input), "input", outputs=False)
    rhs = conv.weight_operand(_kind(kinds, call.weight), reduces_over_outputs=False)
    return [_gemm(kinds, node, Op.CONV, Role.FPROP, lhs, rhs, conv.sizes(Role.FPROP))]


def _convolution_backward(node: fx.Node, kinds: Kinds) -> list[Gemm]:
    conv, call = Geometry.of(node), ConvolutionBackward.of(node)
    dy, x, w = (_kind(kinds, n) for n in (call.grad_output, call.input, call.weight))
    found = []
    if call.output_mask[INPUT_GRADIENT]:
        lhs = conv.channels_operand(dy, "grad_output", outputs=True)
        rhs = conv.weight_operand(w, reduces_over_outputs=True)
        found.append(_gemm(kinds, node, Op.CONV, Role.DGRAD, lhs, rhs, conv.sizes(Role.DGRAD)))
    if call.output_mask[WEIGHT_GRADIENT]:
        # A transposed convolution gathers dY under its window, any other X.
        lhs = conv.pixels_operand(dy, "grad_output", gathered=conv.transposed)
        rhs = conv.pixels_operand(x, "input", gathered=not conv.transposed)
        found.append(_gemm(kinds, node, Op.CONV, Role.WGRAD, lhs, rhs, conv.sizes(Role.WGRAD)))
    return found


def _gemm(
    kinds: Kinds,
    node: fx.Node,
    op: Op,
    role: Role,
    lhs: Operand,
    rhs: Operand,
    sizes: tuple[Any, Any, Any, Any],
) -> Gemm:
    path, module_class = module_path(node)
    tensor = argument(node, lhs.arg).meta["val"]
    involved = (source_of(node, lhs.arg), source_of(node, rhs.arg), node)
    return Gemm(
        node=node,
        op=op,
        role=role,
        target=str(node.target).removesuffix(".default"),
        lhs=lhs,
        rhs=rhs,
        sizes=sizes,
        dtype=str(tensor.dtype).removeprefix("torch."),
        device=str(tensor.device),
        path=path,
        module_class=module_class,
        seq_nr=node.meta.get("seq_nr"),
        guess=next((kind for n in involved if isinstance(kind := kinds[n], Reason)), None),
    )


def _kind(kinds: Kinds, node: fx.Node) -> OperandKind | Unknown:
    kind = kinds[node]
    # A constant operand is data like any activation.
    return Unknown.UNKNOWN if isinstance(kind, Reason) else kind or ACTIVATION


def _matrix_kind(kinds: Kinds, node: fx.Node) -> OperandKind | Unknown:
    kind = _kind(kinds, node)
    if kind not in (WEIGHT, ACTIVATION):
        return kind
    gather = gather_of(node, kinds)
    if gather is None or kinds[gather.table] is not WEIGHT:
        return kind
    return WEIGHT if gather.is_whole else ACTIVATION


def _static(size: Any) -> int | None:
    return size if isinstance(size, int) else None
