"""``nm::prune`` and ``nm::keep_mask``: their registration and what selects their random numbers."""

from __future__ import annotations

import pytest
import torch

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.masks.formats import Method

SEED = torch.tensor([0x123456789ABCDEF])


def seed_of(method):
    return SEED if Method(method).random else None


def test_seed_and_stream_decide_the_mask():
    x = torch.randn(64, 64)

    def mask(seed, stream):
        return torch.ops.nm.keep_mask(x, torch.tensor([seed]), stream, 2, 4, [1], "mvue")

    assert torch.equal(mask(1, 0), mask(1, 0))
    for other in (mask(2, 0), mask(1, 1), mask(1 + (1 << 32), 0)):
        assert 0.2 < (mask(1, 0) != other).float().mean() < 0.6


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5, 2)])
def test_empty(shape):
    x = torch.empty(shape)
    assert torch.ops.nm.prune(x, None, 0, 2, 4, [0], "mse").shape == shape
    assert torch.ops.nm.keep_mask(x, SEED, 0, 2, 4, [0], "mvue").dtype == torch.bool


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("op", [torch.ops.nm.prune, torch.ops.nm.keep_mask])
def test_opcheck(op, method):
    x = torch.randn(6, 9).T[1:]
    dims = [0, 1] if method == "transposable" else [1]
    arguments = (x, seed_of(method), 1, 2, 4, dims, str(method))
    torch.library.opcheck(op, arguments)


def test_inductor_calls_it_with_dynamic_sizes():
    def f(x, seed):
        y = torch.ops.nm.prune(x.sin().t(), seed, 2, 2, 4, [0], "mvue")
        return y * 2 + torch.ops.nm.keep_mask(x.t(), None, 0, 2, 4, [1], "mse")

    compiled = torch.compile(f, dynamic=True, fullgraph=True)
    for size in (8, 13):
        x = torch.randn(size, 12)
        torch.testing.assert_close(compiled(x, SEED), f(x, SEED))
