"""``nm::prune`` and ``nm::keep_mask``: their registration and what selects their random numbers."""

from __future__ import annotations

import pytest
import torch

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.codegen.cpu import kernel as cpu
from nmcompile.codegen.evaluate import evaluate
from nmcompile.masks.formats import Method
from tests.kernels.specs import inputs_of, spec

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


@pytest.mark.parametrize("method", ["mse", "mvue"])
def test_opcheck_of_several_masks(method):
    x = torch.randn(6, 9).T[1:]
    arguments = (x, seed_of(method), [1, 2, 3], 2, 4, [[1], [0], [1, 0]], str(method))
    torch.library.opcheck(torch.ops.nm.prune_each, arguments)


@pytest.mark.parametrize("keep", [False, True])
def test_opcheck_of_a_mask_of_what_is_computed(keep):
    """And that it is the mask of that: ``tests.kernels`` holds the kernels against it."""
    computed = spec("silu_mul_bias", dims=(), dtype="bfloat16")
    inputs = inputs_of(computed, 8, 12)
    how = (SEED, 1, [3, 4, 8], [4, 1, 12], 2, 4, [2, 0], "mvue", keep, computed.to_json())
    torch.library.opcheck(torch.ops.nm.fused_prune, (inputs, *how))
    mask, value = torch.ops.nm.fused_prune(inputs, *how)
    assert torch.equal(value.view(8, 12), evaluate(computed, inputs, 8, 12)[0])
    operator = torch.ops.nm.keep_mask if keep else torch.ops.nm.prune
    wanted = operator(value.as_strided([3, 4, 8], [4, 1, 12]), SEED, 1, 2, 4, [2, 0], "mvue")
    assert torch.equal(mask, wanted)


@pytest.mark.parametrize("kernel", ["compiled", "reference"])
def test_several_masks_are_those_of_single_calls(kernel, monkeypatch):
    """Also where the order of the blocks is not that of memory, and a copy is pruned."""
    if kernel == "reference":
        monkeypatch.setattr(cpu, "kernel", lambda kind: None)
    wide = torch.randn(260, 140)
    image = torch.randn(4, 10, 9, 9)
    operands = [wide, wide.t(), wide[1:, 3:], torch.randn(0, 4), image]
    operands.append(image.to(memory_format=torch.channels_last))
    for x in operands:
        dims = [[1], [0], [0, 1]] if x.dim() == 2 else [[1], [0, 2, 3], [3, 1]]
        for method in ("mse", "mvue"):
            seed, streams = seed_of(method), [7, 5, 6]
            found = torch.ops.nm.prune_each(x, seed, streams, 2, 4, dims, method)
            for stream, along, result in zip(streams, dims, found, strict=True):
                single = torch.ops.nm.prune(x, seed, stream, 2, 4, along, method)
                assert torch.equal(result, single)
                assert result.stride() == single.stride()
                assert x.numel() == 0 or result.data_ptr() != x.data_ptr()


def test_inductor_calls_it_with_dynamic_sizes():
    def f(x, seed):
        y = torch.ops.nm.prune(x.sin().t(), seed, 2, 2, 4, [0], "mvue")
        return y * 2 + torch.ops.nm.keep_mask(x.t(), None, 0, 2, 4, [1], "mse")

    compiled = torch.compile(f, dynamic=True, fullgraph=True)
    for size in (8, 13):
        x = torch.randn(size, 12)
        torch.testing.assert_close(compiled(x, SEED), f(x, SEED))
