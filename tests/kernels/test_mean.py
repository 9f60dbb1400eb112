"""MVUE's mean over many seeds is the operand. Not in the interpreter, which is too slow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

from benchmarks.gpu_check.cases.inputs import DTYPES, on, operand, word
from nmcompile import functional
from nmcompile.masks.formats import NMFormat
from tests.kernels.target import FORMATS, Target

KERNELS = [*product(DTYPES, FORMATS, (1, 0))]
NAMES = [f"{word(dtype)} {n}:{m} dim {dim}" for dtype, (n, m), dim in KERNELS]


@pytest.mark.on("cuda", "cpu")
@pytest.mark.parametrize(("dtype", "format", "dim"), KERNELS, ids=NAMES)
def test_mean(
    device: Target,
    dtype: torch.dtype,
    format: tuple[int, int],
    dim: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Each within 5 sigma, and all together; what is certain to be kept is exact.

    The variance is exact: a kept element becomes x / p with probability p.
    """
    draws = 2000 if device.kind == "cuda" else 40
    x, layout = operand("normal", 64, 64, dtype), str(device.layout)
    p = functional.inclusion_probability(x, NMFormat(*format), dim, "mvue").double()
    there = on(device.name, x)
    total = torch.zeros(64, 64, dtype=torch.float64, device=device.name)
    for number in range(draws):
        seed = torch.tensor([number * 7919 + 1], device=device.name)
        (packed,) = torch.ops.nm.compress(there, seed, [4 - dim], [dim], *format, "mvue", layout)
        dense = torch.ops.nm.decompress(packed, 64, 64, layout)
        total += dense if dim == 1 else dense.t()
    error = (total.cpu() / draws - x.double()).abs()
    kept = p >= 1
    assert (error[kept] <= 1e-12).all(), "elements that are certain"
    variance = x.double().square() * (1 / p.clamp_min(1e-30) - 1) / draws
    common = ~kept & (draws * p * (1 - p) >= min(25, draws / 5))
    z = error[common] / variance[common].sqrt()
    assert len(z) > 0
    record_property("worst sigma of the mean", (float(z.max()), f"{draws} draws"))
    assert z.max() <= 5, f"{z.max():.2f} sigma"
    squares = float(z.square().mean())
    # Its standard deviation is below 0.05: over 1000 numbers, dependent in blocks of four.
    if len(z) >= 1000:
        assert 0.8 <= squares <= 1.2, f"mean square of {len(z)} numbers: {squares:.3f}"
