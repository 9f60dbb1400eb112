"""The oracle's claims: which elements survive, the mean and the variance, transposable masks.

Means and variances by exact integration over the random number (``sampling``), transposable masks
against brute force.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmcompile.masks import reference
from tests.masks.sampling import draw_pair_moments, moments, optimal_variance

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan, 1e-30, 6e-8, 3e38, -65504.0]


@st.composite
def formats(draw):
    m = draw(st.integers(1, 32))
    return draw(st.integers(1, m)), m


# Which elements survive


@settings(deadline=None, max_examples=60)
@given(formats(), st.sampled_from(DTYPES), st.integers(0, 2**30), st.booleans())
def test_at_most_n_survive(form, dtype, seed, special):
    """mse keeps exactly n; mvue and uniform at most n; whatever the values."""
    n, m = form
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randn(64, m, generator=g).to(dtype)
    if special:
        pick = torch.randint(len(SPECIAL), (64, m), generator=g)
        blocks = torch.tensor(SPECIAL, dtype=dtype)[pick]
    u = torch.rand(64, generator=g)
    assert (reference.prune_blocks(blocks, n, "mse")[0].sum(-1) == n).all()
    for method in ("mvue", "uniform"):
        keep, values = reference.prune_blocks(blocks, n, method, u)
        assert (keep.sum(-1) <= n).all()
        assert (values[~keep] == 0).all()
        bad = ~blocks.isfinite().all(-1)
        assert (~values[bad].isfinite()).any(-1).all(), "a non-finite block must stay so"
        if (blocks[~bad].abs() < 1e4).all():
            assert values[~bad].isfinite().all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_mse_keeps_the_largest_and_ties_go_to_the_lower_index(n):
    keep = reference.prune_blocks(torch.tensor([1.0, -1, 1, -1]), n, "mse")[0]
    assert keep.tolist() == [i < n for i in range(4)]
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    keep = reference.prune_blocks(x, n, "mse")[0]
    assert torch.equal(
        x.abs()[keep].view(100, n).sort().values, x.abs().topk(n).values.sort().values
    )


def test_nan_counts_as_the_largest_and_negative_zero_is_kept():
    x = torch.tensor([math.inf, 1.0, math.nan, math.nan])
    assert reference.prune_blocks(x, 2, "mse")[0].tolist() == [False, False, True, True]
    assert reference.prune_blocks(x, 3, "mse")[0].tolist() == [True, False, True, True]
    kept = reference.prune_blocks(torch.tensor([-0.0, -0.0, 0.0, 0.0]), 2, "mse")[1]
    assert kept.signbit().tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_with_few_non_zeros_is_exact_under_mvue(dtype):
    x = torch.tensor([[0.0, 3.0, 0.0, -1e-3], [0, 0, 0, 5], [0, 0, 0, 0]]).to(dtype)
    for u in (0.0, 0.3, 0.999):
        for method in ("mvue", "approx-mvue"):
            keep, values = reference.prune_blocks(
                x, 2, method, torch.full((3,), u), torch.full((3,), u)
            )
            assert torch.equal(values, x)
            assert torch.equal(keep, x != 0)


def test_an_overflowing_threshold_keeps_the_block_visible():
    x = torch.full((4,), 60000.0, dtype=torch.float16)
    keep, values = reference.prune_blocks(x, 1, "mvue", torch.tensor(0.5))
    assert keep.tolist() == [True, False, False, False]
    assert values[0] == math.inf


def test_philox_against_the_published_vectors():
    """Random123's known answers for Philox4x32-7: counter 0 under key 0."""
    words = [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    u = reference.philox_uniforms(torch.tensor([0]), 0, 4)
    assert u.tolist() == [(w & 0x7FFFFF) * 2.0**-23 for w in words]


def test_uniforms_are_uniform_and_independent():
    u = torch.cat([
        reference.philox_uniforms(torch.tensor(7), 1, 100_000),
        reference.philox_uniforms(torch.tensor(7), 2, 100_000),
        reference.philox_uniforms(torch.tensor(7), 1, 100_000, second=True),
        reference.philox_uniforms(torch.tensor(7 << 40), 1, 100_000),
    ]).view(4, -1)  # fmt: skip
    counts = torch.histc(u, 64, 0, 1)
    chi2 = ((counts - 6250) ** 2 / 6250).sum()
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)
    rows = torch.cat([u, u.roll(1, 1)])
    correlation = torch.corrcoef(rows).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 3e38])
def test_mvue_shows_what_it_cannot_sample(special):
    """inf, NaN and sums beyond 2^126: the first n survive as inf or NaN, so a scaler sees them."""
    for place in range(4):
        x = torch.tensor([1.0, -2.0, 3.0, 4.0])
        x[place] = special
        keep, values = reference.prune_blocks(x, 2, "mvue", torch.tensor(0.5))
        assert keep.tolist() == [True, True, False, False]
        assert not values[:2].isfinite().any()
        assert values.isnan().any() == (math.isnan(special) and place < 2)


# Mean and variance


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


# Transposable masks


def legal_masks(n: int, m: int) -> torch.Tensor:
    """All m x m masks with n per row and column, found among all 2^(m*m): [patterns, m, m]."""
    rows = [r for r in itertools.product([False, True], repeat=m) if sum(r) == n]
    every = torch.tensor(list(itertools.product(rows, repeat=m)))
    return every[(every.sum(1) == n).all(-1)]


@pytest.mark.parametrize(("n", "m", "count"), [(2, 4, 90), (1, 4, 24), (3, 4, 24), (1, 2, 2)])
def test_the_kept_sum_is_the_largest(n, m, count):
    masks = legal_masks(n, m)
    assert len(masks) == len(reference.transposable_patterns(n, m)) == count
    x = torch.randn(500, m, m, generator=torch.Generator().manual_seed(0))
    keep = reference.transposable_keep(x, n)
    assert (keep.sum(-1) == n).all()
    assert (keep.sum(-2) == n).all()
    sums = (x.abs().double()[:, None] * masks).sum((-1, -2))
    kept = (x.abs().double() * keep).sum((-1, -2))
    torch.testing.assert_close(kept, sums.max(1).values, rtol=1e-6, atol=0)


def test_ties_go_to_the_first_pattern():
    keep = reference.transposable_keep(torch.ones(4, 4), 2)
    first = reference.transposable_patterns(2, 4)[0]
    assert [tuple(r.nonzero().flatten().tolist()) for r in keep] == list(first)
    assert first == ((0, 1), (0, 1), (2, 3), (2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_non_finite_values_are_kept(dtype):
    x = torch.full((4, 4), torch.finfo(dtype).max, dtype=dtype)
    x[0, 3], x[3, 0], x[3, 1] = math.nan, math.inf, -math.inf
    keep = reference.transposable_keep(x, 2)
    assert bool(keep[0, 3] and keep[3, 0] and keep[3, 1])
