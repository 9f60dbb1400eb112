"""What reads a packed operand: the operand, its mask, another tensor at the kept places."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from benchmarks.gpu_check.cases.inputs import DTYPES, word
from nmcompile.compressed.layouts import Layout
from tests.kernels.target import FORMATS, METHODS, Target, assert_packed, assert_same, kind, make
from tests.kernels.target import seed_of as seed_of_method

nm = torch.ops.nm


def pytest_generate_tests(metafunc: Any) -> None:
    quick = kind() == "interpreter"
    dtypes = [torch.float16] if quick else DTYPES
    kernels = [*product(dtypes, METHODS, FORMATS, [Layout.ROW_MAJOR])]
    others = [x for x in Layout if x is not Layout.ROW_MAJOR and not x.opaque]
    kernels += [(torch.float16, "mse", (2, 4), x) for x in others]
    sizes = [(64, 64), (70, 22)] if quick else [(64, 64), (70, 22), (70, 160)]
    names = [f"{word(d)} {method} {n}:{m} {at}" for d, method, (n, m), at in kernels]
    values = [(k, size) for k in kernels for size in sizes]
    ids = [f"{name}-{rows}x{columns}" for name in names for rows, columns in sizes]
    metafunc.parametrize(("kernel", "size"), values, ids=ids)


def test_unpack(device: Target, kernel: tuple[Any, ...], size: tuple[int, int]) -> None:
    dtype, method, format, layout = kernel
    if not device.packs(layout):
        pytest.skip(f"{layout} is another device's")
    x, other = make("ties", *size, dtype), make("normal", *size, dtype, 1)
    seed = seed_of_method(method)
    (packed,) = nm.compress(x, seed, [0], [1], *format, method, str(layout))
    dense = device.run(nm.decompress, packed, *size, str(layout))
    assert_same(dense, nm.decompress(packed, *size, str(layout)), "decompress")
    mask = device.run(nm.unpack_mask, packed, *size, str(layout))
    assert torch.equal(mask, nm.unpack_mask(packed, *size, str(layout)))
    like = device.run(nm.compress_like, other, packed, str(layout))
    assert_packed(like, nm.compress_like(other, packed, str(layout)), *size, layout)
