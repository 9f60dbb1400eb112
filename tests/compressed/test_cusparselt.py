"""The check of cuSPARSELt's layout, and the way out where it fails.

No library runs here: its compressor is imitated by one that finds survivors itself.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning
from nmcompile.masks.formats import NMFormat
from tests.ops.packed import pack

CPU = torch.device("cpu")


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
    with pytest.raises(RuntimeError, match=r"packs a 128 x 64 operand on cpu into \(128, 64\)"):
        pack(x, layout)


OPAQUE = Layout.CUSPARSELT


@pytest.mark.parametrize("order", ["rows", "columns", "sliced"])
def test_the_library_packs_a_pruned_operand_of_any_strides(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It checks no strides, and takes whole tiles."""
    seen = []

    def compress(values):
        seen.append((values.shape, values.is_contiguous()))
        return library(OPAQUE)(values)

    monkeypatch.setattr(torch, "_cslt_compress", compress)
    x = torch.randn(70, 50).bfloat16()
    x = {"rows": x, "columns": x.t().contiguous().t(), "sliced": x.repeat(2, 2)[::2, ::2]}[order]
    pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
    packed = cusparselt.pack(pruned, OPAQUE)
    assert seen == [((128, 64), True)]
    assert packed.shape == OPAQUE.packed_shape(70, 50, x.dtype)
    assert torch.equal(packing.unpack(packed, 70, 50, OPAQUE), pruned)


def test_a_size_that_was_not_assumed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fake tensors have promised would be wrong, and so would be what reads it."""
    monkeypatch.setattr(torch, "_cslt_compress", lambda x: F.pad(library(OPAQUE)(x), (0, 8)))
    with pytest.raises(RuntimeError, match='sparse products are not known; write execution = "sim'):
        cusparselt.pack(torch.zeros(128, 64, dtype=torch.bfloat16), OPAQUE)


def test_an_opaque_operand_is_never_ours_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        device, dtype = torch.device("cuda:0"), torch.bfloat16

    assert not cusparselt.reads(OPAQUE, OnCuda())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cannot unpack"):
        cusparselt.check_readable(OnCuda(), OPAQUE)  # type: ignore[arg-type]
    assert cusparselt.reads(OPAQUE, torch.ones(1, dtype=torch.bfloat16))
