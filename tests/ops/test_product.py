"""``nm::mm``: on the CPU the dense product bit for bit; what surrounds cuSPARSELt and CUTLASS.

No library runs here: they are imitated by functions that read memory as they do, so that padding,
strides, alignment and slicing are checked.
"""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.sparse import _semi_structured_conversions as torch_cutlass

from nmcompile.compressed import algorithms, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.ops.product import by_library
from nmcompile.ops.schemas import Mm
from tests.ops.packed import LAYOUTS, pack, same_bits

# -- on the CPU --------------------------------------------------------------------------------

# Of a matrix with one row or column nobody can say how it lies, and BLAS chooses by that.
SIZE = st.integers(2, 50)


def dense_product(lhs, rhs, bias=None):
    return torch.mm(lhs, rhs) if bias is None else torch.addmm(bias, lhs, rhs)


@settings(max_examples=80, deadline=None)
@given(
    SIZE, SIZE, SIZE, st.sampled_from(LAYOUTS),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_mm_on_the_left_is_the_dense_product(
    rows, k, columns, layout, dtype, across, has_bias, transposed
):
    """A = prune(x) with blocks along its columns, or prune(x).t() with blocks along x's rows."""
    x = torch.randn((k, rows) if across else (rows, k)).to(dtype)
    dense = (
        torch.randn(columns, k).to(dtype).t() if transposed else torch.randn(k, columns).to(dtype)
    )
    bias = torch.randn(rows).to(dtype) if has_bias else None
    pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [0 if across else 1], "mse")
    a = pruned.t() if across else pruned
    result = torch.ops.nm.mm(
        pack(x, layout, 0 if across else 1), dense, rows, layout, bias, column_major=across
    )
    assert result.is_contiguous()
    assert same_bits(result, dense_product(a, dense, None if bias is None else bias[:, None]))


@settings(max_examples=80, deadline=None)
@given(
    SIZE, SIZE, SIZE, st.sampled_from(LAYOUTS),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_mm_on_the_right_is_the_dense_product(
    rows, k, columns, layout, dtype, across, has_bias, transposed
):
    """``dY @ prune(W)`` (across: blocks along W's rows) and ``X @ prune(W).t()``."""
    weight = torch.randn((k, rows) if across else (rows, k)).to(dtype)
    lhs = torch.randn(k, columns).to(dtype).t() if transposed else torch.randn(columns, k).to(dtype)
    bias = torch.randn(rows).to(dtype) if has_bias else None
    pruned = torch.ops.nm.prune(weight, None, 0, 2, 4, [0 if across else 1], "mse")
    packed = pack(weight, layout, 0 if across else 1)
    result = torch.ops.nm.mm(packed, lhs.t(), rows, layout, bias, True, across)
    assert result.is_contiguous()
    assert same_bits(result, dense_product(lhs, pruned if across else pruned.t(), bias))


def test_empty_products():
    for layout, (rows, k, n) in itertools.product(LAYOUTS, ((0, 8, 3), (5, 0, 3), (5, 8, 0))):
        packed = pack(torch.randn(rows, k), layout)
        assert torch.ops.nm.mm(packed, torch.randn(k, n), rows, layout).shape == (rows, n)
        assert torch.ops.nm.mm(packed, torch.ones(k, n), rows, layout).abs().sum() == 0 or k


@pytest.mark.parametrize("product", [torch.ops.nm.mm, lambda *args: by_library(Mm(*args))])
def test_mismatched_operands_are_refused(product):
    packed, layout = pack(torch.randn(40, 64).bfloat16(), "cutlass_sm80"), "cutlass_sm80"
    dense = torch.randn(64, 8).bfloat16()
    for arguments, error, message in (
        ((packed, dense[:32], 40, layout), ValueError, "is not that of a 40 x 32 operand"),
        ((packed, dense, 80, layout), ValueError, r"\(64, 36\) is not that of a 80 x 64 operand"),
        ((packed, dense.float(), 40, layout), TypeError, "dtypes differ"),
        ((packed, dense[0], 40, layout), ValueError, "must be 2-D"),
        ((packed, dense, 40, layout, torch.ones(8).bfloat16()), ValueError, r"shape \(40,\)"),
        ((packed, dense, 40, layout, torch.ones(40)), ValueError, "it is torch.float32"),
        ((packed, dense, 40, "row"), ValueError, "did you mean 'row_major'"),
    ):
        with pytest.raises(error, match=message):
            product(*arguments)


# -- the libraries -------------------------------------------------------------------------------


#: What a search finds.
ALGORITHM = 5


@pytest.fixture(autouse=True)
def _searched(monkeypatch):
    monkeypatch.setattr(algorithms, "fastest", lambda *_: ALGORITHM)


def cusparselt_product(layout):
    """Like ``torch._cslt_sparse_mm``: strides of ``dense`` are guessed from ``is_contiguous``."""

    def product(packed, dense, bias=None, *, transpose_result=False, alg_id=0):
        (k, n), m = dense.shape, packed.shape[0]
        assert alg_id == ALGORITHM
        assert (m % 16, k % 16, n % 8) == (0, 0, 0)
        assert packed.is_contiguous()
        assert all(t.data_ptr() % 16 == 0 for t in (packed, dense))
        dense = dense.as_strided((k, n), (n, 1) if dense.is_contiguous() else (1, k))
        result = add(packing.unpack(packed, m, k, layout).float() @ dense.float(), bias)
        result = result.to(dense.dtype)
        return result.t().contiguous() if transpose_result else result

    return product


def cutlass_product(values, metadata, dense, bias=None):
    """Like ``torch._sparse_semi_structured_mm``."""
    assert metadata.dtype == torch.int16
    assert all(t.data_ptr() % 16 == 0 for t in (values, metadata, dense))
    assert dense.shape[1] % 8 == 0
    assert 1 in dense.stride()
    a = torch_cutlass.sparse_semi_structured_to_dense_cutlass(values, metadata)
    return add(a.float() @ dense.float(), bias).to(dense.dtype)


def add(result, bias):
    if bias is None:
        return result
    assert bias.shape == result.shape[:1]
    assert bias.is_contiguous()
    return result + bias.float()[:, None]


def views(whole, k, n):
    """Operands ``[k, n]`` with all sorts of strides and offsets."""
    yield whole[:k, :n].contiguous()
    yield whole[:n, :k].contiguous().t()
    yield whole[:k, :n]
    yield whole[:k, 1 : n + 1]
    yield whole[:n, :k].t()
    yield whole[::2, ::2][:k, :n]
    yield whole.view(-1)[1 : k * n + 1].view(k, n)  # contiguous, not aligned
    yield whole.view(-1)[1 : k * n + 1].view(n, k).t()


@pytest.mark.parametrize("layout", [x for x in Layout if x != Layout.ROW_MAJOR])
@pytest.mark.parametrize("transpose_result", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_operands_are_prepared_for_the_libraries(layout, transpose_result, has_bias, monkeypatch):
    monkeypatch.setattr(torch, "_cslt_sparse_mm", cusparselt_product(layout))
    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", cutlass_product)
    monkeypatch.setattr(
        torch, "_sparse_semi_structured_addmm", lambda bias, *rest: cutlass_product(*rest, bias)
    )
    whole = torch.randn(300, 300).bfloat16()
    for rows, k, n in ((64, 64, 8), (128, 128, 16), (70, 50, 9), (1, 1, 1)):
        x = torch.randn(rows, k).bfloat16()
        bias = torch.randn(2 * rows).bfloat16()[::2] if has_bias else None
        a = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
        for dense in views(whole, k, n):
            call = Mm(pack(x, layout), dense, rows, str(layout), bias, transpose_result)
            got = by_library(call)
            expected = add(a.float() @ dense.float(), bias.contiguous() if has_bias else None)
            expected = (expected.t() if transpose_result else expected).bfloat16()
            assert got.is_contiguous()
            torch.testing.assert_close(got, expected)


def test_the_libraries_take_sixteen_bits():
    packed = pack(torch.randn(4, 8), "cusparselt_sm90")
    with pytest.raises(TypeError, match="bfloat16 and float16, not"):
        by_library(Mm(packed, torch.ones(8, 2), 4, "cusparselt_sm90"))


@pytest.mark.parametrize("transpose_result", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_librarys_product_alone(transpose_result, has_bias, monkeypatch):
    layout = Layout.CUSPARSELT_SM90
    monkeypatch.setattr(torch, "_cslt_sparse_mm", cusparselt_product(layout))
    x, dense = torch.randn(64, 64).bfloat16(), torch.randn(64, 16).bfloat16()
    bias = torch.randn(64).bfloat16() if has_bias else None
    call = Mm(pack(x, layout), dense, 64, str(layout), bias, transpose_result)
    got = torch.ops.nm.library_mm(call.packed, dense, bias, transpose_result, ALGORITHM)
    assert torch.equal(got, by_library(call))
