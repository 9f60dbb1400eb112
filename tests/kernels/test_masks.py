"""``nm::prune`` and ``nm::keep_mask`` as by the same operators on the CPU, strides included."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from benchmarks.gpu_check.cases.inputs import DTYPES, word
from nmcompile.ops import masks
from nmcompile.ops.schemas import KeepMask, Prune
from tests.kernels.target import FORMATS, METHODS, Target, assert_same, kind, make, seed_of


@dataclass(frozen=True)
class Kernel:
    dtype: torch.dtype
    method: str
    format: tuple[int, int]

    def __str__(self) -> str:
        n, m = self.format
        return f"{word(self.dtype)} {self.method} {n}:{m}"


KERNELS = [Kernel(*parts) for parts in product(DTYPES, METHODS, FORMATS)]
SHAPES = (
    ((2, 3, 40), [2]),
    ((2, 3, 40), [0, 1]),
    ((70, 22), [0]),
    ((9, 30), [-1]),
    ((70, 160), [1]),
    ((70, 160), [0]),
)


def pytest_generate_tests(metafunc: Any) -> None:
    kernels, shapes = KERNELS, SHAPES
    if kind() == "interpreter":  # that is a matter of time
        kernels, shapes = [k for k in KERNELS if k.dtype == torch.float16], SHAPES[:4]
    if "shape" in metafunc.fixturenames:
        names = [f"{'x'.join(map(str, size))} dims {dims}" for size, dims in shapes]
        pairs = [
            ((k, *shape), f"{k}-{n}")
            for k in kernels
            for shape, n in zip(shapes, names, strict=True)
        ]
        values, ids = zip(*pairs, strict=True)
        metafunc.parametrize(("kernel", "shape", "dims"), values, ids=ids)
    elif "dim" in metafunc.fixturenames:
        values = [(k, dim) for k in kernels for dim in (0, 1)]
        metafunc.parametrize(("kernel", "dim"), values, ids=[f"{k}-dim {d}" for k, d in values])


def ties(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = make("ties", 1, torch.Size(shape).numel(), dtype).view(shape).clone()
    x.view(-1)[::5] = 0
    return x


def test_masks(device: Target, kernel: Kernel, shape: tuple[int, ...], dims: list[int]) -> None:
    x, seed = ties(shape, kernel.dtype), seed_of(kernel.method)
    arguments = (x, seed, 3, *kernel.format, dims, kernel.method)
    if device.kind != "cpu":
        assert masks.as_matrix(Prune(*arguments)) is not None
    pruned = device.run(torch.ops.nm.prune, *arguments)
    assert_same(pruned, torch.ops.nm.prune(*arguments), "prune")
    # MVUE's is the oracle in plain PyTorch, whose sums a GPU may order otherwise.
    if kernel.method == "mse" or device.kind != "cuda":
        kept = device.run(torch.ops.nm.keep_mask, *arguments)
        assert torch.equal(kept, KeepMask(*arguments).run())


def test_masks_of_transposed(device: Target, kernel: Kernel, dim: int) -> None:
    x = make("transposed", 64, 40, kernel.dtype)
    arguments = (x, seed_of(kernel.method), 3, *kernel.format, [dim], kernel.method)
    mine, theirs = device.run(torch.ops.nm.prune, *arguments), torch.ops.nm.prune(*arguments)
    assert_same(mine, theirs, "prune")
    assert mine.stride() == theirs.stride()
