"""Claims about the mean and the variance, by exact integration over the random number."""

from __future__ import annotations

import math

import pytest
import torch

from nmcompile.masks import reference
from tests.masks.sampling import draw_pair_moments, moments, optimal_variance

FORMATS = [(1, 2), (1, 4), (2, 4), (3, 4), (2, 6), (1, 8), (2, 8), (4, 8), (7, 8), (2, 5)]


def blocks(m: int, count: int = 12, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, m, generator=g, dtype=torch.float64)
    x[1] = x[1] ** 5  # a wide range
    x[2, : m // 2] = 0
    x[3] = 1.5  # all equal
    x[4] *= 1e-30
    return x


@pytest.mark.parametrize(("n", "m"), FORMATS)
def test_mvue_is_unbiased_and_its_variance_is_the_smallest(n, m):
    for block in blocks(m):
        mean, second, kept = moments(block, n, "mvue")
        rounding = 1e-15 * float(block.abs().max())
        torch.testing.assert_close(mean, block, rtol=1e-12, atol=rounding)
        p = reference.inclusion_probability(block, n, "mvue")
        torch.testing.assert_close(kept, p, rtol=1e-9, atol=1e-15)
        variance = float((second - mean**2).sum())
        scale = float((block**2).sum())
        assert variance == pytest.approx(optimal_variance(block, n), rel=1e-9, abs=1e-12 * scale)


@pytest.mark.parametrize(("n", "m"), FORMATS)
def test_uniform_is_unbiased(n, m):
    for block in blocks(m):
        mean, _, kept = moments(block, n, "uniform")
        torch.testing.assert_close(mean, block, rtol=1e-12, atol=0)
        torch.testing.assert_close(kept, torch.full_like(kept, n / m))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8)])
def test_mvue_is_unbiased_in_low_precision(dtype, n, m):
    """The threshold is rounded up to the dtype, so no kept value is rounded afterwards."""
    for block in blocks(m).to(dtype):
        mean, _, _ = moments(block, n, "mvue")
        largest = float(block.abs().max())
        torch.testing.assert_close(mean, block.double(), rtol=3e-7, atol=3e-7 * largest)


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 7e36])
def test_mvue_is_unbiased_at_the_ends_of_float32(scale):
    block = torch.tensor([1.0, 2.0, 3.0, 5.0]) * scale
    mean, _, _ = moments(block, 2, "mvue")
    smallest = 2.0**-149
    torch.testing.assert_close(mean, block.double(), rtol=1e-6, atol=smallest)


def test_approx_mvue_is_unbiased():
    for block in blocks(4):
        if (block != 0).sum() > 2:
            mean, _ = draw_pair_moments(block)
            torch.testing.assert_close(mean, block, rtol=1e-12, atol=0)
            p = reference.inclusion_probability(block, 2, "approx-mvue")
            assert float(p.sum()) == pytest.approx(2)


@pytest.mark.parametrize(
    ("method", "n", "m", "expected"),
    [
        ("mvue", 2, 4, 0.474),
        ("mvue", 1, 2, 0.637),
        ("approx-mvue", 2, 4, 0.503),
        ("uniform", 2, 4, 1.0),
    ],
)
def test_relative_variance_of_gaussian_values(method, n, m, expected):
    """Sum of variances over the squared norm; mean squares of the error, from samples."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200_000, m, generator=g)
    u, u2 = torch.rand(2, 200_000, generator=g)
    _, y = reference.prune_blocks(x, n, method, u, u2)
    assert float(((y - x) ** 2).sum() / (x**2).sum()) == pytest.approx(expected, abs=0.005)
    p = reference.inclusion_probability(x, n, method)
    exact = ((1 / p - 1) * x**2).sum() / (x**2).sum()
    assert float(exact) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["mvue", "approx-mvue", "uniform"])
def test_the_mean_over_many_seeds(dtype, method):
    g = torch.Generator().manual_seed(2)
    block = torch.randn(8, 4, generator=g).to(dtype)
    count = 40_000
    u, u2 = torch.rand(2, count, 8, generator=g)
    _, y = reference.prune_blocks(block.expand(count, 8, 4), 2, method, u, u2)
    y = y.double()
    error = (y.mean(0) - block.double()).abs()
    # approx-mvue and uniform round a kept value to the dtype, mvue does not.
    rounding = 0 if method == "mvue" else torch.finfo(dtype).eps * block.double().abs()
    assert (error <= 5 * y.std(0) / math.sqrt(count) + rounding + 1e-6).all()
