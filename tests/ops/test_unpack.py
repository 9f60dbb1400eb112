"""``nm::unpack_mask`` and ``nm::compress_like`` on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.compressed.layouts import Layout

nm = torch.ops.nm


def packed(x: torch.Tensor, layout: str, format: tuple[int, int] = (2, 4)) -> torch.Tensor:
    return torch.ops.nm.compress(x, None, [0], [1], *format, "mse", layout)[0]


@pytest.mark.parametrize("layout", list(map(str, Layout)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 64), (7, 22)])
def test_the_mask_and_the_kept_places(layout: str, dtype: Any, shape: tuple[int, int]) -> None:
    x, other = torch.randn(2, *shape).to(dtype)
    x.view(-1)[::3] = 0
    mask = nm.unpack_mask(packed(x, layout), *shape, layout)
    keep = torch.ops.nm.keep_mask(x, None, 0, 2, 4, [1], "mse")
    assert torch.equal(mask & keep, keep)
    if shape[1] % 4 == 0:
        assert torch.equal(mask, keep)
    like = nm.compress_like(other, packed(x, layout), layout)
    dense = torch.ops.nm.decompress(like, *shape, layout)
    assert torch.equal(dense, torch.where(mask, other, 0))


def test_the_kept_places_of_the_operand_itself_are_the_operand() -> None:
    x = torch.randn(64, 64).half()
    assert torch.equal(nm.compress_like(x, packed(x, "row_major"), "row_major"),
                       packed(x, "row_major"))  # fmt: skip


def test_opcheck() -> None:
    x = torch.randn(16, 32)
    blob = packed(x, "row_major")
    torch.library.opcheck(nm.unpack_mask.default, (blob, 16, 32, "row_major"))
    torch.library.opcheck(nm.compress_like.default, (x, blob, "row_major"))
