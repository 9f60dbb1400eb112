"""``nm::prune`` and ``nm::keep_mask`` by one kernel, bit for bit as the oracle, strides included.

Claims: every method, 16-bit types and float32, blocks of few and of many elements, of a power of
two and of another number; along the last dimension and others, along several, across a row's end;
operands that are transposed, have gaps, are broadcast or do not start at 16 bytes; ties, zeros of
both signs, subnormal and huge numbers, inf and NaN; operands that the kernel computes and writes.

bfloat16 is right in the interpreter too: the kernels compute on bits and in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_check.cases.inputs import word
from nmcompile.codegen import masks
from nmcompile.codegen.evaluate import evaluate
from nmcompile.errors import NMWarning
from nmcompile.masks import reference
from nmcompile.masks.formats import Method
from nmcompile.ops.masks import _no_kernel
from tests.kernels.specs import inputs_of, spec
from tests.kernels.target import SEED, Target, assert_same, hard_operand, kind

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
COMMON = [("mse", (2, 4)), ("mvue", (2, 4)), ("mvue", (4, 8)), ("transposable", (2, 4))]
OTHERS = [
    *(("mse", (1, 2)), ("mvue", (1, 2)), ("mvue", (3, 4)), ("approx-mvue", (2, 4))),
    *(("uniform", (2, 4)), ("transposable", (1, 2)), ("transposable", (3, 4))),
]
#: Many elements, and numbers that are no power of two: they take the interpreter a second.
LARGE = [
    ("mse", (16, 32)),
    ("mvue", (5, 7)),
    ("mvue", (16, 32)),
    ("uniform", (3, 6)),
    ("mvue", (4, 4)),
]


@dataclass(frozen=True)
class Kernel:
    dtype: torch.dtype
    method: str
    format: tuple[int, int]

    def __str__(self) -> str:
        n, m = self.format
        return f"{word(self.dtype)} {self.method} {n}:{m}"


KERNELS = [
    *(Kernel(dtype, *how) for dtype, how in product((BRAIN, HALF, SINGLE), COMMON)),
    *(Kernel(dtype, *how) for dtype, how in product((HALF, SINGLE), OTHERS)),
    *(Kernel(HALF, *how) for how in LARGE),
]

#: An operand made of 36 x 40 hard numbers, and the dimensions of its blocks (of its tiles: the last
#: two, and the first and last).
OPERANDS: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "along rows": (lambda x: x, [1]),
    "along columns": (lambda x: x, [0]),
    "ragged rows": (lambda x: x.flatten()[: 40 * 30].view(40, 30).clone(), [-1]),
    "ragged columns": (lambda x: x[:35, :22].contiguous(), [0]),
    "transposed": (lambda x: x.t(), [1]),
    "gap after rows": (lambda x: x[:, :36], [1]),
    "gaps everywhere": (lambda x: x[::2, 1::2], [0]),
    "shifted": (lambda x: x.flatten()[1:1401].view(35, 40), [1]),
    "leading dimensions": (lambda x: x.view(3, 12, 40), [0, 1]),
    "pixels": (lambda x: x.view(4, 6, 3, 20)[..., :5].contiguous(), [0, 2, 3]),
    "pixels, channels last": (lambda x: x.view(4, 3, 10, 12).permute(0, 3, 1, 2), [0, 2, 3]),
    "dimensions out of order": (lambda x: x.view(6, 6, 40), [2, 0]),
    "broadcast": (lambda x: x[:1].expand(12, 40), [0]),
    "one row": (lambda x: x[:1], [0]),
}
FEW = ("along rows", "along columns", "ragged rows", "pixels")


def pytest_generate_tests(metafunc: Any) -> None:
    if "operand" not in metafunc.fixturenames:
        return
    pairs = []
    for kernel in KERNELS:
        every = kernel.dtype == HALF and (kernel.method, kernel.format) in COMMON
        names = list(OPERANDS) if every else FEW
        if (kernel.method, kernel.format) in LARGE and kind() == "interpreter":
            names = FEW[:3:2]
        pairs += [(kernel, name) for name in names]
    metafunc.parametrize(("kernel", "operand"), pairs, ids=[f"{k}-{name}" for k, name in pairs])


def test_masks(device: Target, kernel: Kernel, operand: str) -> None:
    make, dims = OPERANDS[operand]
    x = make(hard_operand(36, 40, kernel.dtype))
    every_dims = [dims]
    if kernel.method == "transposable":
        every_dims = [[x.dim() - 2, x.dim() - 1], [x.dim() - 1, 0]]
    seed = SEED if Method(kernel.method).random else None
    for some in every_dims:
        arguments = (x, seed, 3, *kernel.format, some, kernel.method)
        pruned, kept = reference.prune_and_mask(*arguments)
        for operator, wanted in ((torch.ops.nm.prune, pruned), (torch.ops.nm.keep_mask, kept)):
            mine = device.run(operator, *arguments)
            assert mine.stride() == wanted.stride()
            if wanted.dtype == torch.bool:
                assert torch.equal(mine, wanted)
            else:
                assert_same(mine, wanted, f"{operator} {some}")


def test_places_that_take_more_than_32_bits(
    device: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_of = masks.launch_of

    def wide(*arguments: Any) -> masks.MaskLaunch:
        found = launch_of(*arguments)
        return replace(found, constants={**found.constants, "WIDE": True})

    monkeypatch.setattr(masks, "launch_of", wide)
    x = hard_operand(36, 40, HALF)
    for method, dims in (("mvue", [1]), ("mvue", [0]), ("transposable", [0, 1])):
        arguments = (x, SEED if method == "mvue" else None, -3, 2, 4, dims, method)
        mine = device.run(torch.ops.nm.prune, *arguments)
        assert_same(mine, reference.prune_and_mask(*arguments)[0], method)


def test_nothing_to_prune(device: Target) -> None:
    for shape in ((0,), (3, 0), (0, 5, 2)):
        mine = device.run(torch.ops.nm.prune, torch.empty(shape), None, 0, 2, 4, [0], "mse")
        assert mine.shape == shape


#: Kernels that compute their operand ``[12, 40]``: how it lies, the blocks' dimensions.
LYING: dict[str, tuple[list[int], list[int], list[int]]] = {
    "along rows": ([12, 40], [40, 1], [1]),
    "along columns": ([12, 40], [40, 1], [0]),
    "transposed": ([40, 12], [1, 40], [1]),
    "pixels, channels last": ([2, 40, 2, 3], [240, 1, 120, 40], [0, 2, 3]),
    "ragged": ([2, 6, 40], [240, 40, 1], [0, 1]),
}


@pytest.mark.parametrize("lying", LYING)
@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE], ids=word)
@pytest.mark.parametrize("name", ["silu_mul_bias", "dropout_residual", "scale_rows"])
def test_kernels_that_compute_their_operand(
    device: Target, name: str, dtype: torch.dtype, lying: str
) -> None:
    """Masks of what they wrote, bit for bit; that within a rounding of the oracle."""
    computed = spec(name, dims=(), dtype=str(dtype).removeprefix("torch."))
    inputs = inputs_of(computed, 12, 40)
    (value,) = evaluate(computed, inputs, 12, 40)
    size, stride, dims = LYING[lying]
    for method, keep in (("mse", False), ("mvue", False), ("mse", True), ("transposable", False)):
        seed = SEED if Method(method).random else None
        some = [len(size) - 2, len(size) - 1] if method == "transposable" else dims
        how = (seed, 3, size, stride, 2, 4, some, method, keep)
        mine, dense = device.run(torch.ops.nm.fused_prune, inputs, *how, computed.to_json())
        tolerance = 2e-6 if dtype == SINGLE else 8e-3
        torch.testing.assert_close(dense.view(12, 40), value, rtol=tolerance, atol=1e-6)
        x = dense.as_strided(size, stride)
        pruned, kept = reference.prune_and_mask(x, seed, 3, 2, 4, some, method)
        wanted = kept if keep else pruned
        assert mine.stride() == wanted.stride()
        assert torch.equal(mine, wanted), f"{method} {keep}"


@pytest.mark.on("cuda", "interpreter")
def test_what_has_no_kernel_is_said_once(device: Target) -> None:
    _no_kernel.cache_clear()
    arguments = (torch.randn(6, 8, dtype=torch.float64), None, 0, 2, 4, [1], "mse")
    with pytest.warns(NMWarning, match="instead of a kernel .there is none for torch.float64"):
        mine = device.run(torch.ops.nm.prune, *arguments)
    assert torch.equal(mine, reference.prune_and_mask(*arguments)[0])
    device.run(torch.ops.nm.prune, *arguments)  # a warning is an error here
