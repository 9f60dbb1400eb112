"""The vocabulary of a product: its roles, operands and FLOPs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from nmcompile.gemm import KINDS_OF_ROLE, Gemm, Op, Operand, OperandKind, Role, has_hint, size_hint


def gemm(*sizes: Any) -> Gemm:
    operands = (
        Operand(OperandKind.ACTIVATION, "self", (1,), None),
        Operand(OperandKind.WEIGHT, "mat2", (0,), None),
    )
    node = fx.Graph().placeholder("product")
    return Gemm(node, Op.LINEAR, Role.FPROP, "aten.mm", *operands, sizes, "", "cpu", "", "", None)


def symbolic(size: int) -> Any:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return mode.from_tensor(torch.empty(size, 2), static_shapes=False).shape[0]


def test_the_three_products_of_training_share_their_operands() -> None:
    assert list(KINDS_OF_ROLE) == list(Role)
    for kind in OperandKind:  # each is an operand of two of the three
        assert sum(kind in kinds for kinds in KINDS_OF_ROLE.values()) == 2


def test_flops_are_counted_where_sizes_are_known() -> None:
    assert gemm(2, 3, 5, 7).flops == gemm(2, 3, 5, 7).flops_hint == 2 * 2 * 3 * 5 * 7


def test_symbolic_flops_are_unknown_and_have_a_hint() -> None:
    size = symbolic(11)
    product = gemm(1, size, 5, 7)
    assert product.flops is None
    assert product.flops_hint == 2 * 11 * 5 * 7
    assert not size.node.shape_env.guards


def test_a_size_without_a_hint_counts_nothing() -> None:
    data = ShapeEnv().create_unbacked_symint()
    sizes = (4, symbolic(9), data, 3 * data, "s0", None)
    assert [size_hint(s) for s in sizes] == [4, 9, 0, 0, 0, 0]
    assert [has_hint(s) for s in sizes] == [True, True, False, False, False, False]
    assert gemm(1, data, 5, 7).flops is gemm(1, data, 5, 7).flops_hint is None
    assert gemm(1, 0, 5, 7).flops_hint == 0


def test_a_product_is_named_by_its_module_or_else_by_its_node() -> None:
    product = gemm(1, 1, 1, 1)
    assert product.where == "product"
    assert replace(product, path="layers.0").where == "layers.0"
    assert product.operands == (product.lhs, product.rhs)
