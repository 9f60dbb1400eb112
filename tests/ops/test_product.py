"""What surrounds cuSPARSELt and CUTLASS: operands made readable for them, and the layout's check.

No library runs here. Its products are imitated by functions that read memory as it does, so that
padding, strides, alignment and slicing are checked; its compressor by one that finds survivors
itself.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.sparse import _semi_structured_conversions as torch_cutlass

from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning
from nmcompile.masks.formats import NMFormat
from nmcompile.ops.product import by_library
from nmcompile.ops.schemas import Mm

CPU = torch.device("cpu")


def pack(x, layout):
    (packed,) = torch.ops.nm.compress(x, None, [0], [1], 2, 4, "mse", str(layout))
    return packed


# -- products ----------------------------------------------------------------------------------


def cusparselt_product(layout):
    """Like ``torch._cslt_sparse_mm``: strides of ``dense`` are guessed from ``is_contiguous``."""

    def product(packed, dense, bias=None, *, transpose_result=False):
        (k, n), m = dense.shape, packed.shape[0]
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


# -- the check of cuSPARSELt's layout ----------------------------------------------------------


def library(layout):
    """A compressor for ``layout`` that finds the survivors itself, as cuSPARSELt does."""

    def compress(values):
        return packing.pack(values != 0, values, values.shape, layout, NMFormat(2, 4), "mse")

    return compress


@pytest.mark.parametrize("layout", [Layout.CUSPARSELT_SM90, Layout.CUSPARSELT_SM80])
@pytest.mark.parametrize("dtype", cusparselt.DTYPES)
def test_the_check_tells_layouts_apart(layout, dtype):
    for other in Layout:
        same = cusparselt.writes_layout(library(other), layout, dtype, CPU)
        assert same == (other is layout)

    def wider(values):
        return F.pad(library(layout)(values), (0, 8))

    assert not cusparselt.writes_layout(wider, layout, dtype, CPU)


def test_another_layout_is_reported_once(monkeypatch):
    cusparselt._reads.cache_clear()
    calls = []

    def other(values):
        calls.append(values.shape)
        return library(Layout.ROW_MAJOR)(values)

    monkeypatch.setattr(torch, "_cslt_compress", other)
    key = (Layout.CUSPARSELT_SM90, torch.bfloat16, CPU, 800)
    with pytest.warns(NMWarning, match="cuSPARSELt 800 on cpu does not write layout"):
        assert not cusparselt._reads(*key)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cusparselt._reads(*key)
    assert len(calls) == 1
    monkeypatch.setattr(torch, "_cslt_compress", library(Layout.CUSPARSELT_SM90))
    assert cusparselt._reads(*key[:3], 801)
    cusparselt._reads.cache_clear()


def test_nothing_is_checked_without_cuda():
    assert cusparselt.reads(Layout.CUSPARSELT_SM90, torch.ones(1, dtype=torch.bfloat16))


def test_operands_are_repacked_for_another_layout(monkeypatch):
    """What ``nm::compress`` returns where the library's layout is not ours."""
    layout, foreign = Layout.CUSPARSELT_SM90, Layout.CUTLASS_SM80
    monkeypatch.setattr(torch, "_cslt_compress", library(foreign))
    monkeypatch.setattr(cusparselt, "reads", lambda *_: False)
    x = torch.randn(70, 50).bfloat16()
    packed = pack(x, layout)
    assert packed.shape == layout.packed_shape(70, 50, x.dtype)
    r_pad, c_pad = layout.padded(70, 50)
    dense = packing.unpack(packed, r_pad, c_pad, foreign)[:70, :50]
    assert torch.equal(dense, torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse"))
    with pytest.raises(RuntimeError, match="cuSPARSELt packed this operand"):
        torch.ops.nm.decompress(packed, 70, 50, str(layout))
    monkeypatch.setattr(torch, "_cslt_compress", lambda dense: dense)
    with pytest.raises(ValueError, match="is not that of a 70 x 50"):
        pack(x, layout)
