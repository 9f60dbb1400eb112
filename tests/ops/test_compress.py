"""``nm::compress`` and ``nm::fused_compress`` on the CPU, and what is read back of them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nmcompile.codegen.evaluate import evaluate
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import FormatError
from nmcompile.masks.formats import NMFormat
from nmcompile.ops import compress
from nmcompile.ops.fused_schemas import FusedCompress
from nmcompile.ops.schemas import Compress, Pack
from tests.kernels.specs import PROLOGUES, UNPADDED, inputs_of, spec
from tests.ops.packed import LAYOUTS, pack, same_bits

SEED = torch.tensor([7])


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


# -- fused with a prologue ----------------------------------------------------------------------


@pytest.mark.parametrize("prologue", PROLOGUES)
@pytest.mark.parametrize("method", ["mse", "mvue"])
def test_fused_compress_is_its_prologue_then_compress(prologue: str, method: str) -> None:
    kind = spec(prologue, (0, 1), method, dtype="bfloat16")
    sizes = UNPADDED if prologue == "packed_alone" else (40, 72)
    inputs = inputs_of(kind, *sizes)
    seed = SEED if method == "mvue" else None
    results = FusedCompress(inputs, seed, [3, 4], kind.to_json()).run()
    (operand,) = evaluate(kind, inputs, *sizes)
    expected = torch.ops.nm.compress(operand, seed, [3, 4], [0, 1], 2, 4, method, str(kind.layout))
    for mine, theirs in zip(results, [*expected, operand], strict=False):
        assert torch.equal(mine.view(torch.int16), theirs.view(torch.int16))
    assert len(results) == 2 + kind.dense_results


def test_opcheck_of_a_fused_call() -> None:
    kind = spec("silu_mul_bias", (1, 0), "mvue")
    inputs = [torch.randn(16, 32).half(), torch.randn(16, 32).half(), torch.randn(32).half()]
    torch.library.opcheck(FusedCompress.operator, (inputs, SEED, [1, 2], kind.to_json()))


# -- pack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mse", "mvue"])
@pytest.mark.parametrize("format", [(2, 4), (1, 2)])
def test_a_pruned_operand_is_packed_as_it_is(method, format):
    seed = None if method == "mse" else SEED
    for x in (torch.randn(70, 50), torch.randn(50, 70).t()):
        pruned = torch.ops.nm.prune(x.bfloat16(), seed, 3, *format, [1], method)
        packed = torch.ops.nm.pack(pruned, "cusparselt")
        assert packed.shape == Layout.CUSPARSELT.packed_shape(70, 50, torch.bfloat16)
        assert torch.equal(torch.ops.nm.decompress(packed, 70, 50, "cusparselt"), pruned)
    torch.library.opcheck(torch.ops.nm.pack.default, (pruned, "cusparselt"))


def test_where_the_library_packs_no_kernel_is_asked(monkeypatch):
    """What is registered for CUDA, on a tensor that says it is there."""
    library = []
    monkeypatch.setattr(cusparselt, "reads", lambda layout, x: not layout.opaque)
    monkeypatch.setattr(cusparselt, "pack", lambda x, layout: library.append(x) or x)
    x = torch.randn(64, 128).bfloat16()
    call = Compress(x, None, [0, 0], [1, 0], 2, 4, "mse", "cusparselt")
    along, across = compress._on_cuda(call)
    assert torch.equal(along, torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse"))
    assert torch.equal(across, torch.ops.nm.prune(x, None, 0, 2, 4, [0], "mse").t())
    assert torch.equal(compress._pack(Pack(along, "cusparselt")), along)
    assert len(library) == 3
