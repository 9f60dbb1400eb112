"""The kernels of the static check, on tiles of 64 x 64: so the interpreter has several of them.

Claims: values, metadata and padding are the oracle's in bfloat16 and float16, MSE and MVUE, 2:4 and
1:2, all orientations and layouts, on sizes that fit the tiles and on sizes that do not, with gaps
after rows, on one row, one column, and behind the prologues.

bfloat16 is right here, although the interpreter's arithmetic in it is not: without a prologue the
device functions compute on bits and in float32. A GPU runs the tiles that it is meant to run
(``test_compress.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_check.cases.inputs import word
from benchmarks.static_check.cases import Case
from nmcompile.codegen.device import host
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat
from tests.kernels.target import Target, assert_packed, hard_operand, seed_of

pytestmark = pytest.mark.on("interpreter")
STREAMS = (-7, -6)
HALF, BRAIN = torch.float16, torch.bfloat16
SM90, SM80 = Layout.CUSPARSELT_SM90, Layout.CUSPARSELT_SM80
WRITTEN = [layout for layout in Layout if not layout.opaque]

#: What the prologues compute, in float32.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x,
    "gelu": functools.partial(F.gelu, approximate="tanh"),
    "swiglu": lambda gate, up: F.silu(gate) * up,
}

#: 1:2 in float16 is left to ``RAGGED`` and to the PTX in ``test_device.py``.
WHOLE = [
    *product((BRAIN,), ("rows", "columns"), ("mse", "mvue"), (2, 1)),
    *product((HALF,), ("rows", "columns"), ("mse", "mvue"), (2,)),
    (BRAIN, "both", "mvue", 2),
    (HALF, "both", "mvue", 2),
]
RAGGED = [
    *(("mse", 2, t, (70, 100), at) for at, t in zip(WRITTEN, (HALF, BRAIN) * 2, strict=True)),
    *(("mvue", n, HALF, (37, 35), Layout.ROW_MAJOR) for n in (2, 1)),
    *(("mse", 1, HALF, size, Layout.ROW_MAJOR) for size in ((1, 64), (96, 1))),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "tile", lambda *_, **__: host.Tile(64, 64, 4))


def check(
    device: Target,
    orientations: str,
    inputs: list[Tensor],
    method: str,
    n: int,
    layout: Layout,
    prologue: str = "identity",
) -> None:
    """One kernel of the static check against the oracle."""
    dtype = inputs[0].dtype
    storage = "bf16" if dtype == torch.bfloat16 else "fp16"
    spec = Case("sm_90", method, n, orientations, storage, str(layout), prologue).spec
    seed, streams = seed_of(method), list(STREAMS[: len(spec.dims)])
    results = device.run(torch.ops.nm.fused_compress, inputs, seed, streams, spec.to_json())
    operand = FUNCTIONS[prologue](*(x.float() for x in inputs)).to(dtype)
    if spec.dense_results:
        # exp differs in its last place, and then the rounding; the masks are of what was written.
        torch.testing.assert_close(results[-1], operand, rtol=2e-3, atol=1e-6)
        operand = results[-1]
    for packed, dim, stream in zip(results, spec.dims, streams, strict=False):
        expected = packing.compress(operand, seed, stream, NMFormat(n, 2 * n), dim, method, layout)
        rows, columns = operand.shape if dim == 1 else operand.shape[::-1]
        if not spec.statements or spec.dense_results:
            assert_packed(packed, expected, rows, columns, layout)
            continue
        # A rounding, or a tie, falls the other way now and then.
        for mine, wanted in zip(
            packing.split(packed, rows, columns, layout),
            packing.split(expected, rows, columns, layout),
            strict=True,
        ):
            assert (mine == wanted).float().mean() > 0.99


@pytest.mark.parametrize(
    ("dtype", "orientations", "method", "n"),
    WHOLE,
    ids=[f"{word(t)} {method} {n}:{2 * n} {o}" for t, o, method, n in WHOLE],
)
def test_whole_tiles(
    device: Target, dtype: torch.dtype, orientations: str, method: str, n: int
) -> None:
    check(device, orientations, [hard_operand(128, 128, dtype)], method, n, SM90)


@pytest.mark.parametrize(
    ("method", "n", "dtype", "size", "layout"),
    RAGGED,
    ids=[f"{word(t)} {m} {n}:{2 * n} {at}-{r}x{c}" for m, n, t, (r, c), at in RAGGED],
)
def test_ragged_tiles(
    device: Target, method: str, n: int, dtype: torch.dtype, size: tuple[int, int], layout: Layout
) -> None:
    check(device, "both", [hard_operand(*size, dtype)], method, n, layout)


@pytest.mark.parametrize("layout", [SM90, SM80], ids=str)
def test_rows_with_gaps(device: Target, layout: Layout) -> None:
    check(device, "both", [hard_operand(80, 112, HALF)[:, :96]], "mvue", 2, layout)


@pytest.mark.parametrize(
    ("prologue", "orientations", "method"),
    [("gelu", "rows", "mse"), ("swiglu", "columns", "mse"), ("swiglu", "both", "mvue")],
)
def test_prologues_on_tiles(device: Target, prologue: str, orientations: str, method: str) -> None:
    gate, up = torch.randn(2, 64, 64).half()
    inputs = [gate] if prologue == "gelu" else [gate, up]
    check(device, orientations, inputs, method, 2, SM90, prologue)
