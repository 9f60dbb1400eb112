"""Compress and decompress in the oracle and in ``functional.compress``."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nmcompile import functional as nm
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import FormatError
from nmcompile.masks import reference
from nmcompile.masks.formats import NMFormat

LAYOUTS = tuple(Layout)
METHODS = ("mse", "mvue", "uniform", "approx-mvue")
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x):
    return x.contiguous().view(INTEGER[x.itemsize])


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def block(values, kept, format="2:4", method="mvue"):
    """The two values and the nibble of one block of 4."""
    x = torch.tensor([values])
    keep = torch.tensor([[i in kept for i in range(4)]])
    packed = packing.pack(
        keep, torch.where(keep, x, 0), (1, 4), Layout.ROW_MAJOR, NMFormat.parse(format), method
    )
    stored, metadata = packing.split(packed, 1, 4, Layout.ROW_MAJOR)
    nibble = int(metadata[0]) & 15
    return stored[0, :2].tolist(), (nibble & 3, nibble >> 2)


def test_blocks_with_two_survivors():
    for pair in itertools.combinations(range(4), 2):
        assert block([1.0, 2.0, 3.0, 4.0], pair) == ([pair[0] + 1.0, pair[1] + 1.0], pair)


def test_missing_survivors_are_the_highest_free_indices():
    x = [1.0, 2.0, 3.0, 4.0]
    for s in range(3):
        assert block(x, [s]) == ([x[s], 0.0], (s, 3))
    assert block(x, [3]) == ([0.0, 4.0], (2, 3))
    assert block(x, []) == ([0.0, 0.0], (2, 3))


def test_pairs():
    x = [1.0, 2.0, 3.0, 4.0]
    for first, second in itertools.product((0, 1), (2, 3)):
        both = ([x[first], x[second]], (first, second))
        assert block(x, [first, second], "1:2") == both
        assert block(x, [first], "1:2") == ([x[first], 0.0], (first, 3))
        assert block(x, [second], "1:2") == ([0.0, x[second]], (1, second))
    assert block(x, [], "1:2") == ([0.0, 0.0], (1, 3))


@pytest.mark.parametrize(
    ("format", "method", "pair"),
    [("2:4", "mse", (0, 1)), ("1:2", "mse", (0, 2)), ("2:4", "mvue", (2, 3)),
     ("2:4", "approx-mvue", (2, 3)), ("1:2", "mvue", (1, 3)), ("1:2", "uniform", (1, 3))],
)  # fmt: skip
def test_padding_follows_the_method(format, method, pair):
    form, layout = NMFormat.parse(format), Layout.CUSPARSELT_SM90
    seed = None if method == "mse" else torch.tensor([3])
    x = torch.randn(5, 11, dtype=torch.bfloat16)
    packed = packing.compress(x, seed, 0, form, 1, method, layout)
    values, metadata = packing.split(packed, 5, 11, layout)
    nibbles = torch.stack((metadata & 15, metadata >> 4), -1).flatten()[layout.nibbles(64, 32)]
    assert (nibbles[5:] == pair[0] | pair[1] << 2).all()
    assert (nibbles[:, 3:] == pair[0] | pair[1] << 2).all()
    assert (bits(values[5:]) == 0).all()
    assert (bits(values[:, 6:]) == 0).all()


def test_a_ragged_block_is_the_padded_block():
    x = torch.tensor([[math.nan], [2.0], [0.0], [-0.0]])
    for method, last in (("mse", 1), ("mvue", 3)):
        seed = torch.tensor([1])
        packed = packing.compress(x, seed, 0, NMFormat(2, 4), 1, method, Layout.ROW_MAJOR)
        _, metadata = packing.split(packed, 4, 1, Layout.ROW_MAJOR)
        # A block with a NaN keeps its two largest, whatever the method: the NaN and the first zero.
        empty = 0 | 1 << 2 if method == "mse" else 2 | 3 << 2
        assert (metadata[::4] & 15).tolist() == [0 | 1 << 2, 0 | last << 2, empty, empty]


def test_a_mask_of_another_format_is_refused():
    keep, x = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4)
    with pytest.raises(ValueError, match="more than 2 elements in a block of 4"):
        packing.pack(keep, x, (1, 4), Layout.ROW_MAJOR, NMFormat(2, 4), "mse")
    keep = torch.tensor([[True, True, False, False]])
    with pytest.raises(ValueError, match="more than 1 elements in a block of 2"):
        packing.pack(keep, x, (1, 4), Layout.ROW_MAJOR, NMFormat(1, 2), "mse")


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -2.0, 1e-30, 3e4]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 37), st.sampled_from(LAYOUTS), st.sampled_from(METHODS),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    st.sampled_from(["2:4", "1:2"]), st.sampled_from([0, 1]), st.integers(0, 2), st.randoms(),
)  # fmt: skip
def test_round_trip(rows, columns, layout, method, dtype, format, dim, strides, random):
    form = NMFormat.parse("2:4" if method == "approx-mvue" else format)
    x = torch.tensor([random.choice([random.gauss(0, 1), random.choice(SPECIAL)])
                      for _ in range(rows * columns)]).to(dtype)  # fmt: skip
    x = x.view(rows, columns) if strides else x.view(columns, rows).t()
    if strides == 2:
        x = x[::2]
    seed = None if method == "mse" else torch.tensor([random.getrandbits(60)])
    packed = packing.compress(x, seed, 7, form, dim, method, layout)
    pruned, _ = reference.prune_and_mask(x, seed, 7, form.n, form.m, [dim], method)
    operand = pruned if dim == 1 else pruned.t()
    assert packed.dtype == dtype
    assert packed.shape == layout.packed_shape(*operand.shape, dtype)
    assert same_bits(packing.unpack(packed, *operand.shape, layout), operand)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_minus_zero_keep_their_sign(layout):
    x = torch.full((3, 10), -0.0, dtype=torch.bfloat16)
    c = nm.compress(x, layout=layout)
    assert same_bits(c.decompress(), nm.prune(x))
    assert (bits(c.decompress()) != 0).sum() == 18  # two of each block and of the last half block


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("method", METHODS)
def test_functional(dim, method):
    x = torch.randn(70, 50, dtype=torch.bfloat16)

    def generator():
        return None if method == "mse" else torch.Generator().manual_seed(5)

    c = nm.compress(x, dim, "cusparselt_sm90", method, generator())
    assert same_bits(c.decompress(), nm.prune(x, "2:4", dim, method, generator()))
    rows, columns = c.operand_shape
    assert (rows, columns) == ((70, 50) if dim else (50, 70))
    r_pad, c_pad = c.layout.padded(rows, columns)
    assert c.values.shape == (r_pad, c_pad // 2)
    assert (c.metadata.dtype, c.metadata.shape) == (torch.uint8, (r_pad * c_pad // 8,))
    assert c.packed.nbytes == c.values.nbytes + c.metadata.nbytes
    assert c.values.data_ptr() == c.packed.data_ptr()


def test_functional_pairs_and_repr():
    x = torch.randn(64, 128, dtype=torch.bfloat16, requires_grad=True)
    c = nm.compress(x, format="1:2")
    assert same_bits(c.decompress(), nm.prune(x, "1:2"))
    assert not c.packed.requires_grad
    assert repr(c) == (
        "Compressed(64 x 128 bfloat16 on cpu, 1:2 along dim 1, cusparselt_sm90, 9,216 bytes, "
        "0.562 of dense)"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("dim", [0, 1])
def test_an_empty_matrix_has_an_empty_packed_tensor(layout, shape, dim):
    c = nm.compress(torch.zeros(shape), dim, layout)
    assert c.packed.numel() == c.values.numel() == c.metadata.numel() == 0
    assert c.decompress().shape == shape
    assert "0 bytes" in repr(c)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.ones(4)}, ValueError, "not 1 dimensions"),
        ({"x": torch.ones(4, 4, 4)}, ValueError, "not 3 dimensions"),
        ({"dim": (0, 1)}, ValueError, r"dim=\(0, 1\)"),
        ({"dim": 2}, IndexError, "dimension 2"),
        ({"x": torch.ones(4, 4, dtype=torch.int8)}, TypeError, "int8: it must be one of float32"),
        ({"x": torch.ones(4, 4).to(torch.float8_e4m3fn)}, TypeError, "float8_e4m3fn: it must be"),
        ({"layout": "cutlas_sm80"}, ValueError, "did you mean 'cutlass_sm80'"),
        ({"method": "transposable"}, ValueError, 'prune with method="transposable"'),
        ({"method": "mvu"}, ValueError, "did you mean 'mvue'"),
        ({"format": "2:8"}, FormatError, "only 2:4 and 1:2"),
        ({"format": "1:4"}, FormatError, "1:4 has none"),
        ({"generator": torch.Generator()}, ValueError, "leave out the generator"),
    ],
)
def test_messages(arguments, error, message):
    with pytest.raises(error, match=message):
        nm.compress(**({"x": torch.ones(4, 4)} | arguments))


def test_a_packed_tensor_of_another_size_is_refused():
    c = nm.compress(torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"\(64, 34\) is not that of a 65 x 4"):
        packing.unpack(c.packed, 65, 4, c.layout)
