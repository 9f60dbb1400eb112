"""The compiled CPU kernel: equal to the oracle bit for bit, in every layout and dtype."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.codegen.cpu import kernel as cpu
from nmcompile.errors import NMWarning
from nmcompile.masks import reference
from nmcompile.masks.formats import Method, NMFormat

SEED = torch.tensor([0x123456789ABCDEF])
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
FORMATS = [(1, 2), (2, 4), (1, 4), (3, 4), (4, 4), (2, 6), (2, 8), (4, 8), (16, 32)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def seed_of(method):
    return SEED if Method(method).random else None


def assert_same_bits(actual, expected):
    assert actual.stride() == expected.stride()
    bits = BITS[actual.element_size()]
    differ = (actual.view(bits) != expected.view(bits)) & ~(actual.isnan() & expected.isnan())
    assert not differ.any(), (actual[differ][:8], expected[differ][:8])


def awkward(shape, dtype, seed=0):
    """Normal values with zeros, ties, tiny and huge ones, inf and NaN."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    flat = x.view(-1)
    flat[::7], flat[5::23], flat[6::23], flat[3::29], flat[4::31] = 0, -1, 1, 1e-39, 1e-7
    flat[2::37] *= 6e4 if dtype == torch.float16 else 3e38
    flat[40::97], flat[50::101] = torch.nan, torch.inf
    return x.to(dtype)


def check(x, n, m, dims, method, mask=True):
    seed = seed_of(method)
    values, keep = reference.prune_and_mask(x, seed, 3, n, m, dims, method)
    assert_same_bits(torch.ops.nm.prune(x, seed, 3, n, m, dims, method), values)
    if mask:
        assert torch.equal(torch.ops.nm.keep_mask(x, seed, 3, n, m, dims, method), keep)


@pytest.mark.parametrize(
    ("n", "m", "dtype"),
    [(n, m, torch.float32) for n, m in FORMATS]
    + [(n, m, dtype) for dtype in DTYPES[1:] for n, m in ((1, 2), (2, 4), (2, 6), (4, 8))],
)
def test_kernel_equals_oracle(n, m, dtype):
    x = awkward((3, 70, 36), dtype)
    mask = dtype == torch.float32 or (n, m) == (2, 4)
    methods = ["mse", "mvue", "uniform"] + ["approx-mvue"] * ((n, m) == (2, 4))
    for method in methods:
        for dims in ([1], [2], [0, 2], [0, 1, 2]):
            check(x, n, m, dims, method, mask)
    if m in (2, 4):
        check(x, n, m, [1, 2], "transposable", mask)


@pytest.mark.parametrize("scale", [1e-43, 1e-39, 1e38])
def test_kernel_equals_oracle_at_the_ends_of_float32(scale):
    """Subnormal values are not flushed, and sums may overflow."""
    x = (torch.randn(256, 64, dtype=torch.float64) * scale).float()
    for method in ("mse", "mvue", "approx-mvue", "uniform"):
        check(x, 2, 4, [1], method)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_layout(data):
    """1 to 5 dimensions, permuted, sliced and expanded, any dims in any order."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    x = awkward(sizes, torch.float32, seed=data.draw(st.integers(0, 99)))
    order = data.draw(st.permutations(range(len(sizes))))
    x = x.permute(order)
    if data.draw(st.booleans()):
        x = x[..., 1:]
    if data.draw(st.booleans()):
        x = x.unsqueeze(0).expand(3, *x.shape)
    dims = data.draw(
        st.lists(st.integers(0, x.dim() - 1), min_size=1, max_size=x.dim(), unique=True)
    )
    check(x, 2, 4, dims, data.draw(st.sampled_from(["mse", "mvue"])))
    # Block membership, written independently of the layouts: plain flattening.
    keep = torch.ops.nm.keep_mask(x, None, 0, 2, 4, dims, "mse")
    others = [d for d in range(x.dim()) if d not in dims]
    size = torch.tensor([x.shape[d] for d in dims]).prod()
    rows = x.permute(*others, *dims).reshape(-1, size) if x.numel() else x.reshape(0, 1)
    kept = keep.permute(*others, *dims).reshape(rows.shape)
    for start in range(0, rows.shape[1], 4):
        block = rows[:, start : start + 4]
        expected = reference.prune_blocks(block, min(2, block.shape[1]), "mse")[0]
        assert torch.equal(kept[:, start : start + 4], expected)
    if x.dim() > 1:
        check(x, 2, 4, [0, x.dim() - 1], "transposable")


@pytest.mark.parametrize("dims", [[1], [0, 2, 3], [3]])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_convolution_layouts(dims, memory):
    for spatial in (4, 5):
        x = awkward((4, 12, spatial, spatial), torch.float32).to(memory_format=memory)
        check(x, 2, 4, dims, "mvue")
        out = torch.ops.nm.prune(x, None, 0, 2, 4, dims, "mse")
        assert out.stride() == x.stride()
        assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_result(threads):
    x, before = awkward((700, 333), torch.float32), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for dims in ([0], [1]):
            check(x, 2, 4, dims, "mvue")
        both = torch.ops.nm.prune_each(x, SEED, [1, 2], 2, 4, [[1], [0]], "mvue")
        for result, stream, dims in zip(both, (1, 2), ([1], [0]), strict=True):
            expected, _ = reference.prune_and_mask(x, SEED, stream, 2, 4, dims, "mvue")
            assert_same_bits(result, expected)
    finally:
        torch.set_num_threads(before)


def test_warm_up_compiles_in_the_background():
    kind = cpu.KernelKind(NMFormat(5, 7), Method.MSE, torch.float32)
    cpu.warm_up(kind)
    cpu.warm_up(kind)
    assert cpu.kernel(kind) is cpu.kernel(kind)


def test_without_a_compiler_the_reference_works_and_says_so_once(monkeypatch):
    def fail(kind):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(cpu, "_load", fail)
    monkeypatch.setattr(cpu, "_kernels", {})
    cpu._without_compiler.cache_clear()
    x = torch.randn(8, 8)
    with pytest.warns(NMWarning, match="no such compiler"):
        first = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
    torch.ops.nm.keep_mask(x, None, 0, 2, 4, [1], "mse")  # a second warning would be an error
    assert_same_bits(first, reference.prune_and_mask(x, None, 0, 2, 4, [1], "mse")[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on Windows")
def test_a_forked_child_builds_for_itself():
    """The thread that builds in the background is not there in it, and the lock may be held."""
    cpu.warm_up(cpu.KernelKind(NMFormat(5, 7), Method.MSE, torch.float64))
    with cpu._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # instead of waiting for ever
            kinds = [cpu.KernelKind(NMFormat(n, 7), Method.MSE, torch.float64) for n in (5, 6)]
            for kind in kinds:
                cpu.warm_up(kind)
            os._exit(0 if all(map(cpu.kernel, kinds)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_compiler_that_breaks_while_a_kernel_is_warmed_up_is_no_error(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(cpu._torch, "ask_vector_instructions", fail)
    cpu.warm_up(cpu.KernelKind(NMFormat(5, 7), Method.MSE, torch.float32))
