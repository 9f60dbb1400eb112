"""``nm::compress``, ``nm::decompress`` and ``nm::mm`` on the CPU, and their registration."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import FormatError
from nmcompile.masks.formats import NMFormat
from nmcompile.ops.product import by_library
from nmcompile.ops.schemas import Mm

LAYOUTS = [str(layout) for layout in Layout]
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a, b):
    kind = INTEGER[a.itemsize]
    return a.shape == b.shape and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def pack(x, layout, dim=1, method="mse", n=2, m=4):
    seed = None if method == "mse" else torch.tensor([9])
    (packed,) = torch.ops.nm.compress(x, seed, [3], [dim], n, m, method, layout)
    return packed


def dense_product(lhs, rhs, bias=None):
    return torch.mm(lhs, rhs) if bias is None else torch.addmm(bias, lhs, rhs)


# -- compress and decompress -------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("method", "n", "m"), [("mse", 2, 4), ("mse", 1, 2), ("mvue", 2, 4), ("mvue", 1, 2)]
)
def test_both_orientations_are_those_of_prune(layout, dtype, method, n, m):
    seed = None if method == "mse" else torch.tensor([11])
    for rows, columns, order in ((1, 1, 0), (3, 66, 0), (34, 21, 1), (65, 37, 2)):
        x = torch.randn(rows, columns)
        x = torch.where(torch.rand_like(x) < 0.3, -0.0, x).to(dtype)
        x = (x, x.t().contiguous().t(), x.repeat(2, 2)[::2, ::2])[order]
        arguments = (x, seed, [5, 6], [1, 0], n, m, method, layout)
        along, across = torch.ops.nm.compress(*arguments)
        pruned = [
            torch.ops.nm.prune(x, seed, stream, n, m, [dim], method)
            for stream, dim in ((5, 1), (6, 0))
        ]
        assert same_bits(torch.ops.nm.decompress(along, rows, columns, layout), pruned[0])
        assert same_bits(torch.ops.nm.decompress(across, columns, rows, layout), pruned[1].t())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 40), st.sampled_from(LAYOUTS), st.sampled_from([0, 1]),
    st.sampled_from(["mse", "mvue", "uniform", "approx-mvue"]), st.booleans(),
)  # fmt: skip
def test_the_operator_is_the_oracle_bit_for_bit(rows, columns, layout, dim, method, transposed):
    x = torch.randn(columns, rows).t() if transposed else torch.randn(rows, columns)
    x = torch.where(x.abs() < 0.3, 0.0, x).to(torch.bfloat16)
    seed = None if method == "mse" else torch.tensor([9])
    expected = packing.compress(x, seed, 3, NMFormat(2, 4), dim, method, Layout(layout))
    assert same_bits(pack(x, layout, dim, method), expected)


def test_inf_and_nan_come_back():
    x = torch.randn(64, 64)
    x[3, 5], x[7, 9], x[9, 12] = float("nan"), float("inf"), float("-inf")
    for method in ("mse", "mvue"):
        packed = pack(x, "cusparselt_sm90", method=method)
        dense = torch.ops.nm.decompress(packed, 64, 64, "cusparselt_sm90")
        seed = None if method == "mse" else torch.tensor([9])
        assert same_bits(dense, torch.ops.nm.prune(x, seed, 3, 2, 4, [1], method))
        assert dense[3, 5].isnan()
        assert dense[7, 9] == float("inf")
        assert dense[9, 12] == float("-inf")


def test_arguments_are_checked():
    x = torch.randn(4, 8)
    with pytest.raises(FormatError, match="only 2:4 and 1:2"):
        pack(x, "row_major", n=2, m=8)
    with pytest.raises(ValueError, match="transposable"):
        pack(x, "row_major", method="transposable")
    with pytest.raises(ValueError, match="is not a layout"):
        pack(x, "rowmajor")
    with pytest.raises(ValueError, match=r"of shape \(4, 18\) is not that of a 4 x 40 operand"):
        torch.ops.nm.decompress(pack(x.bfloat16(), "row_major"), 4, 40, "row_major")


# -- registration ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x = torch.randn(37, 45, dtype=torch.bfloat16)
    seed = torch.tensor([3])
    for a in (x, x.t(), x[::2, 1:]):
        checks = torch.library.opcheck(
            torch.ops.nm.compress.default, (a, seed, [0, 1], [1, 0], 2, 4, "mvue", layout)
        )
        assert "test_aot_dispatch_dynamic" in checks
    packed = pack(x, layout)
    torch.library.opcheck(torch.ops.nm.decompress.default, (packed, 37, 45, layout))
    for dense in (torch.randn(45, 11).bfloat16(), torch.randn(11, 45).bfloat16().t()):
        torch.library.opcheck(torch.ops.nm.mm.default, (packed, dense, 37, layout))
        bias = torch.randn(37).bfloat16()
        torch.library.opcheck(torch.ops.nm.mm.default, (packed, dense, 37, layout, bias, True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_symbolic_sizes(layout):
    """One graph for all sizes: the shapes of the packed tensors are exact expressions."""

    def product(x, dense):
        (packed,) = torch.ops.nm.compress(x, None, [0], [1], 2, 4, "mse", layout)
        back = torch.ops.nm.decompress(packed, x.shape[0], x.shape[1], layout)
        return packed, back, torch.ops.nm.mm(packed, dense, x.shape[0], layout)

    graphs = []

    def record(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(product, backend=record, dynamic=True, fullgraph=True)
    for rows, columns, n in ((70, 50, 9), (6, 200, 5), (130, 33, 64)):
        x, dense = torch.randn(rows, columns), torch.randn(columns, n)
        packed, back, result = compiled(x, dense)
        assert packed.shape == Layout(layout).packed_shape(rows, columns, x.dtype)
        pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
        assert torch.equal(back, pruned)
        assert torch.equal(result, torch.mm(pruned, dense))
    assert len(graphs) == 1


# -- products on the CPU -----------------------------------------------------------------------

# Of a matrix with one row or column nobody can say how it lies, and BLAS chooses by that.
SIZE = st.integers(2, 50)


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
