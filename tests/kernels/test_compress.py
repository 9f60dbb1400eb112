"""Compress kernels without a prologue: packed and unpacked as by the oracle, bit for bit.

Claims, for both types, MVUE and MSE, 2:4 and 1:2, blocks along the rows, the columns and both:
- in the layout of the device, on whole tiles, whole blocks and sizes that are no multiple of
  anything; on ties, zeros of both signs, subnormal and huge numbers, inf and NaN; on operands that
  are transposed, have a gap after each row, or do not start at 16 bytes;
- in every other layout that a kernel writes there, on some of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch

from benchmarks.gpu_check.cases.inputs import DTYPES, word
from nmcompile.codegen import launch
from nmcompile.compressed.layouts import Layout
from tests.kernels.target import FORMATS, METHODS, ORIENTATIONS, Target, assert_compress, kind, make

_VALUES = ("normal", "ties", "special", "hard")
#: Kinds of operands by shape: whole tiles; whole blocks, but not whole tiles; neither. Triton
#: compiles anew for sizes, strides and addresses that 16 divides or not: no more kinds than needed.
OPERANDS: dict[str, dict[tuple[int, int], tuple[str, ...]]] = {
    "cuda": {
        (128, 128): _VALUES,
        (256, 1024): ("normal",),
        (70, 160): (*_VALUES, "sliced"),
        (257, 1001): (*_VALUES, "transposed", "shifted"),
        (3, 5): ("normal", "ties", "special"),
    },
    # A tile takes the interpreter a second. bfloat16 has fewer operands (and test_tiles.py).
    "interpreter": {(64, 128): ("special",), (40, 72): ("hard",), (3, 5): ("special",)},
    # Both sides run the same code there.
    "cpu": {(64, 64): _VALUES, (33, 37): ("normal", "transposed", "sliced", "shifted")},
}
IN_LAYOUTS: dict[str, dict[tuple[int, int], tuple[str, ...]]] = {
    "cuda": {(128, 128): ("normal",), (70, 50): ("normal", "ties")},
    "interpreter": OPERANDS["interpreter"],
    "cpu": {(70, 50): ("normal", "ties")},
}
_PLACES = ("transposed", "sliced", "shifted")


@dataclass(frozen=True)
class Kernel:
    """One source that is printed, but for the layout."""

    dtype: torch.dtype
    method: str
    format: tuple[int, int]
    orientation: str

    def __str__(self) -> str:
        n, m = self.format
        return f"{word(self.dtype)} {self.method} {n}:{m} {self.orientation}"


KERNELS = [Kernel(*parts) for parts in product(DTYPES, METHODS, FORMATS, ORIENTATIONS)]


def operands(number: int) -> list[tuple[int, int, str]]:
    """Sizes and kinds on which a kernel of ``KERNELS`` is run."""
    if kind() == "interpreter" and KERNELS[number].dtype == torch.bfloat16:
        return [(20, 36, _PLACES[number % len(_PLACES)])]
    return flat(OPERANDS)


def flat(
    shapes: dict[str, dict[tuple[int, int], tuple[str, ...]]],
) -> list[tuple[int, int, str]]:
    """Sizes and kinds where the kernels run."""
    return [(*size, name) for size, kinds in shapes.get(kind(), {}).items() for name in kinds]


def label(operand: tuple[int, int, str]) -> str:
    rows, columns, kind = operand
    return f"{rows}x{columns} {kind}"


# Not by decorators: what a process collects depends on a variable that may change in it.
def pytest_generate_tests(metafunc: Any) -> None:
    if metafunc.function is test_compress:
        pairs = [(k, o) for i, k in enumerate(KERNELS) for o in operands(i)]
    elif metafunc.function is test_layout:
        written = [layout for layout in Layout if not layout.opaque]
        layouts = [(layout, method) for layout in written for method in METHODS]
        pairs = [(pair, o) for pair in layouts for o in flat(IN_LAYOUTS)]
    else:
        return
    names = [f"{' '.join(k) if isinstance(k, tuple) else k}-{label(o)}" for k, o in pairs]
    metafunc.parametrize(("kernel", "operand"), pairs, ids=names)


def test_compress(device: Target, kernel: Kernel, operand: tuple[int, int, str]) -> None:
    rows, columns, kind = operand
    x = make(kind, rows, columns, kernel.dtype, _seed(kind))
    dims = ORIENTATIONS[kernel.orientation]
    assert_compress(device, x, kernel.method, kernel.format, dims, device.layout)


def test_layout(device: Target, kernel: tuple[Layout, str], operand: tuple[int, int, str]) -> None:
    (layout, method), (rows, columns, kind) = kernel, operand
    if not device.packs(layout):
        pytest.skip(f"{layout} would be packed by this device's library")
    dtype = torch.float16 if device.kind == "interpreter" else torch.bfloat16
    x = make(kind, rows, columns, dtype, _seed(kind))
    assert_compress(device, x, method, (2, 4), (1, 0), layout)


def _seed(kind: str) -> int:
    return (*_VALUES, *_PLACES).index(kind)


@pytest.mark.on("cuda", "interpreter")
def test_kernels_are_generated(device: Target) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("nm::compress", "CUDA")
    for dtype, method in product(DTYPES, METHODS):
        assert launch.is_generated(torch.empty(4, 4, dtype=dtype, device=device.name), method)
