"""Run printed kernels in Triton's interpreter and compare them with the oracle, bit for bit.

They are the static check's, on tiles of 64 x 64. Started by ``test_device.py`` in a process of its
own with TRITON_INTERPRET=1. bfloat16 is right here, although the interpreter's arithmetic in it is
not: the device functions compute on bits and in float32.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from benchmarks.static_check.cases import Case
from nmcompile.codegen import launch, loader
from nmcompile.codegen.device import host, primitives
from nmcompile.codegen.device.functions import silu
from nmcompile.codegen.device.philox import philox
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat

SEED = -0x123456789ABCDEF
STREAMS = (-7, -6)
ROWS, COLUMNS = 64, 64


def hard_operand(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Gaussian numbers of many sizes with ties, zeros of both signs, denormals, inf and NaN."""
    x = torch.randn(rows, columns) * torch.exp2(4 * torch.randn(rows, columns))
    x = torch.where(torch.rand(rows, columns) < 0.3, 0.0, x)
    x[: rows // 4] = torch.randn(rows // 4, columns).mul(2).round()
    flat, largest = x.view(-1), float(torch.finfo(dtype).max)
    middle = flat.numel() // 2
    flat[middle : middle + 200] *= torch.finfo(dtype).tiny
    for offset, step, value in (
        (3, 101, -0.0), (5, 197, float("nan")), (11, 213, float("-inf")), (17, 103, largest),
        (18, 103, largest), (19, 309, -largest), (23, 205, float(torch.finfo(dtype).tiny)),
    ):  # fmt: skip
        flat[offset::step] = value
    return x.to(dtype)


#: What the prologues compute, in float32.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x,
    "gelu": functools.partial(F.gelu, approximate="tanh"),
    "swiglu": lambda gate, up: F.silu(gate) * up,
}


def run(spec: KernelSpec, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The results of a kernel, as of ``launch.run``; its streams are -7 and -6."""
    rows, columns = inputs[0].shape
    strides = launch.row_strides(spec, inputs, columns)
    fit = host.fit_of(rows, columns, list(strides.values()), [0], ROWS, COLUMNS)
    # Every element must be written: what is not is a NaN.
    shapes = launch.result_shapes(spec, rows, columns)
    results = [torch.full(shape, torch.nan, dtype=inputs[0].dtype) for shape in shapes]
    loader.load(spec)[host.launch_grid(rows, columns, ROWS, COLUMNS)](
        **launch.tensor_arguments(spec, inputs, results, torch.tensor([SEED])),
        **launch.number_arguments(spec, rows, columns, strides, STREAMS),
        ROWS=ROWS, COLUMNS=COLUMNS, FIT=fit, ISA=0,
    )  # fmt: skip
    return results


def check(
    orientations: str,
    inputs: Sequence[Tensor],
    method: str,
    n: int,
    layout: Layout,
    prologue: str = "identity",
) -> None:
    """One kernel of the static check against the oracle."""
    dtype = inputs[0].dtype
    storage = "bf16" if dtype == torch.bfloat16 else "fp16"
    spec = Case("sm_90", method, n, orientations, storage, str(layout), prologue).spec
    results = run(spec, inputs)
    operand = FUNCTIONS[prologue](*(x.float() for x in inputs)).to(dtype)
    if spec.keep_dense:
        # exp differs in its last place, and then the rounding; the masks are of what was written.
        torch.testing.assert_close(results[-1], operand, rtol=2e-3, atol=1e-6)
        operand = results[-1]
    for packed, dim, stream in zip(results, spec.dims, STREAMS, strict=False):
        expected = packing.compress(
            operand, torch.tensor([SEED]), stream, NMFormat(n, 2 * n), dim, method, layout
        )
        rows, columns = operand.shape if dim == 1 else operand.shape[::-1]
        (mine, metadata), (values, wanted) = (
            packing.split(p, rows, columns, layout) for p in (packed, expected)
        )
        same = (mine.view(torch.int16) == values.view(torch.int16)) | (
            mine.isnan() & values.isnan()
        )
        if spec.statements and not spec.keep_dense:
            # A rounding, or a tie, falls the other way now and then.
            assert same.float().mean() > 0.99
            assert (metadata == wanted).float().mean() > 0.99
        else:
            assert same.all(), (spec.name, dim, layout, dtype, operand.shape)
            assert torch.equal(metadata, wanted), (spec.name, dim, layout, dtype, operand.shape)


def whole_tiles() -> None:
    """Both types, both methods and formats, all orientations, on whole tiles.

    1:2 in float16 is left to ``ragged_tiles`` and to the PTX in ``test_device.py``.
    """
    for dtype in (torch.bfloat16, torch.float16):
        x = hard_operand(128, 128, dtype)
        formats = (2, 1) if dtype == torch.bfloat16 else (2,)
        for orientations, method, n in product(("rows", "columns"), ("mse", "mvue"), formats):
            check(orientations, [x], method, n, Layout.CUSPARSELT_SM90)
        check("both", [x], "mvue", 2, Layout.CUSPARSELT_SM90)


def ragged_tiles() -> None:
    """All layouts; sizes that are no multiple of anything; rows with gaps; one row; one column."""
    for layout, dtype in zip(Layout, (torch.float16, torch.bfloat16) * 2, strict=True):
        check("both", [hard_operand(70, 100, dtype)], "mse", 2, layout)
    for layout in (Layout.CUSPARSELT_SM90, Layout.CUSPARSELT_SM80):
        check("both", [hard_operand(80, 112, torch.float16)[:, :96]], "mvue", 2, layout)
    for n in (2, 1):
        check("both", [hard_operand(37, 35, torch.float16)], "mvue", n, Layout.ROW_MAJOR)
    for rows, columns in ((1, 64), (96, 1)):
        check("both", [hard_operand(rows, columns, torch.float16)], "mse", 1, Layout.ROW_MAJOR)
    gate, up = torch.randn(2, 64, 64).half()
    check("rows", [gate], "mse", 2, Layout.CUSPARSELT_SM90, "gelu")
    for orientations, method in (("columns", "mse"), ("both", "mvue")):
        check(orientations, [gate, up], method, 2, Layout.CUSPARSELT_SM90, "swiglu")


@triton.jit
def _primitives(
    a, b, permuted, total, rounded, function, words, random, STORAGE: tl.constexpr
):  # fmt: skip
    i = tl.arange(0, 256)
    x, y = tl.load(a + i), tl.load(b + i)
    tl.store(permuted + i, primitives.byte_permute(x, y, 0xF3A5, 0))
    tl.store(total + i, primitives.dot_bytes(x, 0x40100402, 5, 0))
    u, v = x.to(tl.float32, bitcast=True), y.to(tl.float32, bitcast=True)
    tl.store(rounded + i, primitives.round_pair(u, v, STORAGE, 0))
    tl.store(function + i, silu(tl.load(function + i), 0))
    w = philox(tl.load(words + i), tl.load(words + i) * 0, 0, tl.load(random) * 0)
    tl.store(random + i, w[0].to(tl.int64) | (w[3].to(tl.int64) << 32))


def plain_primitives() -> None:
    """The plain forms of the instructions, against NumPy and PyTorch."""
    for dtype, storage in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        a = torch.randint(-(2**31), 2**31, (256,)).int()
        b = torch.where(torch.arange(256) < 128, torch.randn(256).view(torch.int32), a.flip(0))
        a[0], b[0] = 0x7F7FFFFF, 0x3F808000
        permuted, total, rounded = (torch.zeros(256, dtype=torch.int32) for _ in range(3))
        function, x = torch.linspace(-10, 10, 256), torch.linspace(-10, 10, 256)
        words, random = torch.arange(256).int(), torch.zeros(256, dtype=torch.int64)
        _primitives[(1,)](a, b, permuted, total, rounded, function, words, random, STORAGE=storage)
        bytes_a, bytes_b = (t.numpy().view(np.uint8).reshape(-1, 4) for t in (a, b))
        # 0xF3A5: byte 1 of b, the sign of byte 2 of a, byte 3 of a, the sign of byte 3 of b.
        sign = [(part >> 7) * np.uint8(255) for part in (bytes_a[:, 2], bytes_b[:, 3])]
        wanted = np.stack([bytes_b[:, 1], sign[0], bytes_a[:, 3], sign[1]], 1)
        assert (permuted.numpy() == np.ascontiguousarray(wanted).view(np.int32)[:, 0]).all()
        weights = np.array([0x02, 0x04, 0x10, 0x40])
        assert (total.numpy() == 5 + (bytes_a.astype(np.int64) * weights).sum(1)).all()
        pairs = rounded.view(dtype).view(-1, 2)
        for mine, source in ((pairs[:, 0], a), (pairs[:, 1], b)):
            expected = source.view(torch.float32).to(dtype)
            equal = mine.view(torch.int16) == expected.view(torch.int16)
            assert (equal | (mine.isnan() & expected.isnan())).all()
        torch.testing.assert_close(function, F.silu(x), rtol=1e-5, atol=1e-6)
        # Random123's known answer for counter 0 and key 0 with seven rounds.
        assert int(random[0]) & (2**64 - 1) == 0x4F730A48_5F6FB709


PARTS: dict[str, Callable[[], None]] = {
    "whole_tiles": whole_tiles,
    "ragged_tiles": ragged_tiles,
    "plain_primitives": plain_primitives,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # NumPy warns about the overflows that the operands are made for.
    warnings.simplefilter("ignore", RuntimeWarning)
    PARTS[sys.argv[1]]()
