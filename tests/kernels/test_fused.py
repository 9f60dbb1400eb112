"""Compress kernels with a prologue: each of ``specs.PROLOGUES``, and masks of what it wrote."""

from __future__ import annotations

import pytest
import torch

from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.compressed.layouts import Layout
from tests.kernels.specs import SIZES, UNPADDED, fused_specs, inputs_of, laid
from tests.kernels.specs import spec as make_spec
from tests.kernels.target import Target, assert_packed, seed_of

SPECS = dict(fused_specs())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SPECS)
def test_fused(device: Target, name: str, size: tuple[int, int]) -> None:
    """The prologue within a rounding of the oracle, the packing exactly."""
    spec = SPECS[name]
    inputs = laid(spec.inputs, device.layout)
    spec = spec.model_copy(update={"layout": device.layout, "inputs": inputs})
    tensors, streams = inputs_of(spec, *size), list(range(3, 3 + len(spec.dims)))
    seed = seed_of(spec.method)
    operator = torch.ops.nm.fused_compress
    results = device.run(operator, tensors, seed, streams, spec.to_json())
    many = len(spec.dims) + len(spec.alike)
    assert len(results) == many + spec.dense_results
    packed, dense = iter(results[: len(spec.dims)]), iter(results[many:])
    for name, kept in zip(spec.alike, results[len(spec.dims) :], strict=False):
        (x,) = (x for i, x in zip(spec.inputs, tensors, strict=True) if i.name == name)
        wanted = torch.ops.nm.compress_like(x, results[0], str(spec.layout))
        assert_packed(kept, wanted, *size, spec.layout)
    drawn = iter(streams)
    kind = (spec.n, spec.m, spec.method, str(spec.layout))
    for operand, value in zip(spec.operands, evaluate(spec, tensors, *size), strict=True):
        if operand.keep_dense:
            # exp differs in its last place, and then the rounding; masks are of what was written.
            written = next(dense)
            torch.testing.assert_close(written, value, rtol=2e-3, atol=1e-6)
            value = written
        some = [next(drawn) for _ in operand.dims]
        expected = torch.ops.nm.compress(value, seed, some, operand.dims, *kind)
        for wanted, dim in zip(expected, operand.dims, strict=True):
            mine = next(packed)
            if operand.keep_dense or not spec.statements:
                assert_packed(mine, wanted, size[1 - dim], size[dim], spec.layout)
            else:
                assert_nearly(mine, wanted, spec)


@pytest.mark.parametrize("layout", [x for x in Layout if not x.opaque])
@pytest.mark.parametrize("name", ["masked_packed", "packed_alone"])
def test_packed_inputs(device: Target, name: str, layout: Layout) -> None:
    """What is read of packed tensors of every layout, bit for bit."""
    if not device.packs(layout):
        pytest.skip(f"{layout} is another device's")
    spec = make_spec(name, dims=(), layout=layout)
    tensors = inputs_of(spec, *UNPADDED)
    (found,) = device.run(torch.ops.nm.fused_compress, tensors, None, [], spec.to_json())
    (expected,) = evaluate(spec, tensors, *UNPADDED)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


def assert_nearly(mine: torch.Tensor, wanted: torch.Tensor, spec: KernelSpec) -> None:
    """A rounding, or a tie, falls the other way now and then."""
    assert mine.shape == wanted.shape
    same = mine.view(torch.int16) == wanted.view(torch.int16)
    assert same.float().mean() > 0.95, spec.name
