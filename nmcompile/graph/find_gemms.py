"""Find every matrix product and convolution of a graph; mutate nothing.

    addmm(bias, x [T,I], w_t [I,O])        -> fprop, x reduces along dim 1, w_t along dim 0
    mm(dy [T,O], w [O,I])                  -> dgrad
    mm(dy_t [O,T], x [T,I])                -> wgrad
    convolution_backward(dy, x, w, ...)    -> dgrad and wgrad, two sites on one node

A product with a gradient operand gets its role in ``backward_roles``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import Gemm, Op, Operand, OperandKind, Role
from nmcompile.graph.backward_roles import assign_roles, is_view
from nmcompile.graph.module_path import module_path
from nmcompile.graph.operand_kinds import Kinds

aten = torch.ops.aten
WEIGHT, ACTIVATION = OperandKind.WEIGHT, OperandKind.ACTIVATION

#: Matrix products and the position of their left operand.
LEFT_OPERAND: dict[Any, int] = {
    aten.mm.default: 0,
    aten.addmm.default: 1,
    aten.bmm.default: 0,
    aten.baddbmm.default: 1,
}

_TRANSPOSE = (aten.t.default, aten.transpose.int, aten.permute.default)
_CASTS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default)


def find_gemms(graph: fx.Graph, kinds: Kinds) -> list[Gemm]:
    """Every product of the graph in graph order, with role, operands, sizes and module path."""
    finders: dict[Any, Callable[[fx.Node, Kinds], list[Gemm]]] = {
        **dict.fromkeys(LEFT_OPERAND, _matmul),
        aten.convolution.default: _convolution,
        aten.convolution_backward.default: _convolution_backward,
    }
    found = [
        gemm
        for node in graph.nodes
        if node.op == "call_function" and node.target in finders
        for gemm in finders[node.target](node, kinds)
    ]
    return assign_roles(found)


def is_pointwise(node: fx.Node) -> bool:
    """Is this convolution (or its backward) a plain matrix product: 1x1, stride 1, no padding?"""
    conv = _Conv.of(node)
    return conv.pointwise and not conv.transposed and conv.rank == 2


def _matmul(node: fx.Node, kinds: Kinds) -> list[Gemm]:
    left = LEFT_OPERAND[node.target]
    a, b = node.args[left], node.args[left + 1]
    assert isinstance(a, fx.Node)
    assert isinstance(b, fx.Node)
    a_shape, b_shape = _shape(a), _shape(b)
    batch = a_shape[0] if len(a_shape) == 3 else 1
    m, k = a_shape[-2:]
    rank = len(a_shape)
    lhs = Operand(_kind(kinds, a), left, (rank - 1,), _static(k), tile_dims=(rank - 2, rank - 1))
    rhs = Operand(
        _kind(kinds, b), left + 1, (rank - 2,), _static(k), tile_dims=(rank - 2, rank - 1)
    )
    if lhs.kind is rhs.kind is WEIGHT and _is_linear_layer(a, b):
        lhs = replace(lhs, kind=ACTIVATION)  # embedded positions or learned queries, in a layer
    has_one_weight = (lhs.kind is WEIGHT) != (rhs.kind is WEIGHT)
    op = Op.LINEAR if has_one_weight else Op.MATMUL
    return [_gemm(node, op, Role.FPROP, lhs, rhs, (batch, m, b_shape[-1], k))]


def _is_linear_layer(x: fx.Node, w_t: fx.Node) -> bool:
    """Is this a value computed from parameters, times a parameter's transpose, as F.linear has it?

    Not so a product of two parameters, such as a low-rank update: its result is a weight.
    """
    transposed = False
    while w_t.op == "call_function" and (is_view(w_t) or w_t.target in _CASTS):
        transposed ^= w_t.target in _TRANSPOSE
        w_t = w_t.all_input_nodes[0]
    while x.op == "call_function" and (is_view(x) or x.target in _CASTS):
        x = x.all_input_nodes[0]
    return transposed and w_t.op != "call_function" and x.op == "call_function"


def _convolution(node: fx.Node, kinds: Kinds) -> list[Gemm]:
    conv = _Conv.of(node)
    x, w = node.args[0], node.args[1]
    assert isinstance(x, fx.Node)
    assert isinstance(w, fx.Node)
    lhs = Operand(_kind(kinds, x), 0, (1,), conv.channels_in, conv.groups)
    rhs = conv.weight_operand(_kind(kinds, w), 1, reduces_over_outputs=False)
    return [_gemm(node, Op.CONV, Role.FPROP, lhs, rhs, conv.sizes(Role.FPROP))]


def _convolution_backward(node: fx.Node, kinds: Kinds) -> list[Gemm]:
    conv = _Conv.of(node)
    dy, x, w = node.args[:3]
    assert isinstance(dy, fx.Node)
    assert isinstance(x, fx.Node)
    assert isinstance(w, fx.Node)
    mask = node.args[10]
    assert isinstance(mask, (list, tuple))
    found = []
    if mask[0]:
        lhs = Operand(_kind(kinds, dy), 0, (1,), conv.channels_out, conv.groups)
        rhs = conv.weight_operand(_kind(kinds, w), 2, reduces_over_outputs=True)
        found.append(_gemm(node, Op.CONV, Role.DGRAD, lhs, rhs, conv.sizes(Role.DGRAD)))
    if mask[1]:
        # One side of the reduction is one element per pixel, the other side is gathered under the
        # kernel window (im2col), where one pixel stands in many blocks.
        pixels = (0, *range(2, conv.rank + 2))
        extent = _static(math.prod((conv.batch, *conv.pixels)))
        windowed = f"its pixels overlap under the {_by(conv.kernel)} kernel window (im2col)"
        obstacle = None if conv.pointwise else windowed
        lhs = Operand(
            _kind(kinds, dy), 0, pixels, extent, obstacle=obstacle if conv.transposed else None
        )
        rhs = Operand(
            _kind(kinds, x), 1, pixels, extent, obstacle=None if conv.transposed else obstacle
        )
        found.append(_gemm(node, Op.CONV, Role.WGRAD, lhs, rhs, conv.sizes(Role.WGRAD)))
    return found


@dataclass(frozen=True)
class _Conv:
    """The geometry shared by a convolution and its backward."""

    batch: Any
    pixels: tuple[Any, ...]  # one per position of the kernel: outputs, or inputs if transposed
    kernel: tuple[int, ...]
    channels_in: int  # of one group
    channels_out: int  # of one group
    groups: int
    transposed: bool
    pointwise: bool

    @classmethod
    def of(cls, node: fx.Node) -> _Conv:
        backward = node.target is aten.convolution_backward.default
        x, w = (node.args[1], node.args[2]) if backward else (node.args[0], node.args[1])
        stride, padding, _, transposed, _, groups = node.args[4:10] if backward else node.args[3:9]
        y_shape = _shape(node.args[0] if backward else node)
        x_shape, w_shape = _shape(x), _shape(w)
        kernel = tuple(w_shape[2:])
        assert isinstance(stride, (list, tuple))
        assert isinstance(padding, (list, tuple))
        assert isinstance(groups, int)
        pointwise = (
            all(k == 1 for k in kernel)
            and all(s == 1 for s in stride)
            and all(p == 0 for p in padding)
        )
        return cls(
            batch=x_shape[0],
            pixels=tuple((x_shape if transposed else y_shape)[2:]),
            kernel=kernel,
            channels_in=x_shape[1] // groups,
            channels_out=y_shape[1] // groups,
            groups=groups,
            transposed=bool(transposed),
            pointwise=pointwise,
        )

    @property
    def rank(self) -> int:
        return len(self.kernel)

    def weight_operand(self, kind: OperandKind, arg: int, reduces_over_outputs: bool) -> Operand:
        """The weight is [O, C/g, ...], or [C, O/g, ...] for a transposed convolution."""
        leading = reduces_over_outputs != self.transposed  # is dimension 0 the reduced one?
        extent = self.channels_out if reduces_over_outputs else self.channels_in
        return Operand(
            kind,
            arg,
            dims=(0,) if leading else (1,),
            extent=extent,
            groups=self.groups if leading else 1,
            tile_dims=(0, 1),
            tile_groups=self.groups,
        )

    def sizes(self, role: Role) -> tuple[Any, Any, Any, Any]:
        """(batch = groups, M, N, K) of the implicit GEMM, without the padded positions."""
        tokens = math.prod((self.batch, *self.pixels))
        window = math.prod(self.kernel)
        ins, outs = self.channels_in, self.channels_out
        return {
            Role.FPROP: (self.groups, tokens, outs, ins * window),
            Role.DGRAD: (self.groups, tokens, ins, outs * window),
            Role.WGRAD: (self.groups, outs, ins * window, tokens),
        }[role]


def _gemm(
    node: fx.Node, op: Op, role: Role, lhs: Operand, rhs: Operand, sizes: tuple[Any, Any, Any, Any]
) -> Gemm:
    path, module_class = module_path(node)
    value = node.args[lhs.arg]
    assert isinstance(value, fx.Node)
    tensor = value.meta["val"]
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
    )


def _kind(kinds: Kinds, node: fx.Node) -> OperandKind:
    return kinds[node] or ACTIVATION  # a constant operand is data like any activation


def _shape(node: Any) -> tuple[Any, ...]:
    assert isinstance(node, fx.Node)
    return tuple(node.meta["val"].shape)


def _static(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
