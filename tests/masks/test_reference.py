"""Claims about which elements survive."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmcompile.masks import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan, 1e-30, 6e-8, 3e38, -65504.0]


@st.composite
def formats(draw):
    m = draw(st.integers(1, 32))
    return draw(st.integers(1, m)), m


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
