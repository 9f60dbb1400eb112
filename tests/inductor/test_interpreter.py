"""A rewritten graph as if its policy were dense: every operator and what stands for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from nmcompile.inductor.interpreter import _DENSE, DenseInterpreter, PlannedInterpreter
from nmcompile.ops import fused_schemas, schemas
from nmcompile.ops.schemas import (
    Compress,
    CompressLike,
    Decompress,
    KeepMask,
    Mm,
    Prune,
    UnpackMask,
)

LAYOUT = "cusparselt_sm90"
X, OTHER = torch.randn(6, 8), torch.randn(6, 8)


def run(f: Callable[..., Any], *args: Tensor, by: type[fx.Interpreter] = DenseInterpreter) -> Any:
    """``f``, traced without running its operators, then interpreted."""
    return by(fx.symbolic_trace(f)).run(*args)


def packed(x: Any, dim: int) -> Any:
    return Compress.operator(x, None, [0], [dim], 2, 4, "mse", LAYOUT)[0]


@pytest.mark.parametrize("x", [X, X.t(), X[:, ::2]])
def test_a_mask_keeps_everything(x: Tensor) -> None:
    mask = ([1], "mse")
    assert torch.equal(run(lambda x: Prune.operator(x, None, 0, 2, 4, *mask), x), x)
    kept = run(lambda x: KeepMask.operator(x, None, 0, 2, 4, *mask), x)
    assert kept.all()
    assert (kept.shape, kept.dtype) == (x.shape, torch.bool)


@pytest.mark.parametrize(("dim", "operand"), [(1, X), (0, X.t())])
def test_a_packed_operand_is_the_dense_one(dim: int, operand: Tensor) -> None:
    rows, columns = operand.shape
    found = run(lambda x: Decompress.operator(packed(x, dim), rows, columns, LAYOUT), X)
    assert torch.equal(found, operand)
    assert found.is_contiguous()
    mask = run(lambda x: UnpackMask.operator(packed(x, dim), rows, columns, LAYOUT), X)
    assert mask.all()
    assert (mask.shape, mask.is_contiguous()) == (operand.shape, True)


def test_two_orientations_of_one_operand() -> None:
    every = Compress.operator
    both = run(lambda x: every(x, None, [0, 1], [0, 1], 2, 4, "mse", LAYOUT), X)
    assert torch.equal(both[0], X.t())
    assert torch.equal(both[1], X)


def test_the_kept_places_of_another_tensor_are_all_of_it() -> None:
    def f(x: Any, y: Any) -> Any:
        kept = CompressLike.operator(y, packed(x, 1), LAYOUT)
        return Decompress.operator(kept, 6, 8, LAYOUT)

    assert torch.equal(run(f, X, OTHER), OTHER)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_sparse_product_is_the_dense_one(dim: int, transpose: bool, has_bias: bool) -> None:
    operand = X if dim else X.t()
    dense, bias = torch.randn(operand.shape[1], 5), torch.randn(operand.shape[0])

    def f(x: Any, dense: Any, bias: Any) -> Any:
        given = bias if has_bias else None
        return Mm.operator(packed(x, dim), dense, len(bias_rows), LAYOUT, given, transpose, False)

    bias_rows = range(operand.shape[0])
    found = run(f, X, dense, bias)
    expected = operand @ dense + (bias[:, None] if has_bias else 0)
    torch.testing.assert_close(found, expected.t() if transpose else expected)
    assert found.is_contiguous()


def test_every_operator_of_a_joint_graph_has_its_dense_form() -> None:
    known = {**vars(schemas), **vars(fused_schemas)}
    operators = {c.operator for c in known.values() if hasattr(c, "operator")}
    # A seed is drawn as it is, and a gradient computed; the others are made after planning.
    fused = (fused_schemas.FusedCompress, fused_schemas.FusedPrune, schemas.LibraryMm)
    later = (*fused, schemas.PruneEach, schemas.PruneInAnyLayout)
    same = (schemas.RankSeed, schemas.GroupedGradient)
    others = {*(call.operator for call in same), *(call.operator for call in later)}
    assert set(_DENSE) == operators - others


@pytest.mark.parametrize("by", [PlannedInterpreter, DenseInterpreter])
def test_a_view_that_the_strides_of_a_kernel_do_not_allow_is_a_copy(by: Any) -> None:
    view = torch.ops.aten.view.default
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        run(lambda x: view(x, [48]), X.t(), by=fx.Interpreter)
    assert torch.equal(run(lambda x: view(x, [48]), X.t(), by=by), X.t().reshape(48))
