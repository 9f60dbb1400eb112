"""Grouped products: each row of X times the matrix of its group, as experts of a mixture do.

    _grouped_mm(x [S,I], w [E,I,O], offs [E])   -> [S,O]     fprop, dgrad: rows of the result
    _grouped_mm(x [E,I,S], w [S,O], offs [E])   -> [E,I,O]   wgrad, as (x [I,S], dy [S,O])
    _grouped_mm(x [E,S,I], w [E,I,O])           -> [E,S,O]   a batched product
    _grouped_mm(w [E,O,I], x [I,S], offs [E])   -> [O,S]     the transpose of the first

Group e are the rows from offs[e-1] to offs[e]; rows behind the last offset belong to none. Offsets
are data on the device, and no size depends on them.

transformers has operators of its own for what PyTorch's does not take under a compiler (float32),
the backward as one operator with two results. They exist where transformers has been imported, and
are told by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import Operand, OperandKind, Role, Unknown, size_hint
from nmcompile.graph.aten import INPUT_GRADIENT, WEIGHT_GRADIENT, argument, items
from nmcompile.ops.call import Call, check_names

FALLBACK = "transformers.grouped_mm_fallback.default"
FALLBACK_BACKWARD = "transformers.grouped_mm_fallback_backward.default"

KindOf = Callable[[fx.Node], OperandKind | Unknown]
Sizes = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class GroupedMm(Call):
    """``aten._grouped_mm``; ``offs`` is None where both operands are 3-D."""

    operator = torch.ops.aten._grouped_mm.default

    self: Any
    mat2: Any
    offs: Any = None
    bias: Any = None
    out_dtype: Any = None


check_names(GroupedMm)


@dataclass(frozen=True)
class GroupedProduct:
    """One product of a node: its role, where the operator has one, its operands and GEMM sizes."""

    role: Role
    lhs: Operand
    rhs: Operand
    sizes: Sizes


def is_grouped(node: fx.Node) -> bool:
    """Whether the node computes grouped products."""
    names = (FALLBACK, FALLBACK_BACKWARD)
    return node.target is GroupedMm.operator or str(node.target) in names


def grouped_products(node: fx.Node, kind: KindOf) -> Iterator[GroupedProduct]:
    """The products of a node that ``is_grouped``; those of PyTorch's own operator as fprop."""
    if node.target is GroupedMm.operator:
        yield _grouped_mm(node, kind)
    elif str(node.target) == FALLBACK:
        yield _fallback(node, kind)
    else:
        yield from _fallback_backward(node, kind)


def _grouped_mm(node: fx.Node, kind: KindOf) -> GroupedProduct:
    call = GroupedMm.of(node)
    a, b = call.self.meta["val"], call.mat2.meta["val"]
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = a.shape[0] if a.dim() == b.dim() == 3 else 1
    groups = "offs" if a.dim() == b.dim() == 2 else None  # blocks run along the groups
    lhs = _operand(kind(call.self), "self", a.dim() - 1, a, groups)
    rhs = _operand(kind(call.mat2), "mat2", b.dim() - 2, b, groups)
    lhs, rhs = (replace(o, obstacle=_rows_of_a_copy(value)) for o, value in ((lhs, a), (rhs, b)))
    return GroupedProduct(Role.FPROP, lhs, rhs, (batch, m, n, k))


def _rows_of_a_copy(x: torch.Tensor) -> str | None:
    """Why a masked copy of the operand, which has no gaps in memory, is none for the product."""
    distance = max(torch.empty_like(x).stride()[-2:], key=size_hint)
    size = distance * x.element_size()
    if not isinstance(size, int) or size % 16 == 0:
        return None
    return (
        f"a copy without its gaps has rows of {size} bytes, and the product takes multiples of 16"
    )


def _fallback(node: fx.Node, kind: KindOf) -> GroupedProduct:
    x, w = (argument(node, name) for name in ("input", "weight"))
    lhs = _operand(kind(x), "input", 1, x.meta["val"])
    rhs = _operand(kind(w), "weight", 1, w.meta["val"])
    (rows, ins), outs = x.meta["val"].shape, w.meta["val"].shape[2]
    return GroupedProduct(Role.FPROP, lhs, rhs, (1, rows, outs, ins))


def _fallback_backward(node: fx.Node, kind: KindOf) -> Iterator[GroupedProduct]:
    """dX [S,I] = dY [S,O] W^T and dW [E,I,O] = X^T dY, as far as anything reads them."""
    names = ("input", "weight", "grad_output")
    x, w, dy = (argument(node, name) for name in names)
    (rows, ins), outs = x.meta["val"].shape, w.meta["val"].shape[2]
    if _is_read(node, INPUT_GRADIENT):
        lhs = _operand(kind(dy), "grad_output", 1, dy.meta["val"])
        rhs = _operand(kind(w), "weight", 2, w.meta["val"])
        yield GroupedProduct(Role.DGRAD, lhs, rhs, (1, rows, ins, outs))
    if _is_read(node, WEIGHT_GRADIENT):
        lhs = _operand(kind(x), "input", 0, x.meta["val"], "offs")
        rhs = _operand(kind(dy), "grad_output", 0, dy.meta["val"], "offs")
        yield GroupedProduct(Role.WGRAD, lhs, rhs, (1, ins, outs, rows))


def _is_read(node: fx.Node, result: int) -> bool:
    return any(item.users for item in items(node, result))


def _operand(
    kind: OperandKind | Unknown,
    arg: str,
    dim: int,
    value: torch.Tensor,
    offsets: str | None = None,
) -> Operand:
    size = value.shape[dim]
    extent = size if isinstance(size, int) else None
    # Of a stack of matrices; the groups of a matrix lie along one of its dimensions.
    tiles = (1, 2) if value.dim() == 3 else None
    return Operand(kind, arg, (dim,), extent, tile_dims=tiles, offsets=offsets)
