"""Operators on what a packed operand kept: its mask, and other tensors at the same places.

unpack_mask(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor
    The keep mask, bool [rows, columns]. Where a random method kept fewer than two elements of
    a block, the free indices that fill it are True as well (``nmcompile.compressed.packing``).
compress_like(Tensor x, Tensor packed, str layout) -> Tensor
    x [rows, columns] at the places that ``packed`` keeps, packed in the same layout: what a
    backward needs of a tensor whose gradient is masked so.

On CUDA these and ``nm::decompress`` are Triton kernels for 16-bit types (``codegen.expand``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmcompile.codegen import unpack
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.ops.compress import decompress_in_pytorch

_LIBRARY = torch.library.Library("nm", "FRAGMENT")


def _fake_unpack_mask(packed: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    return packed.new_empty(rows, columns, dtype=torch.bool)


def _unpack_mask(packed: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    order, ones = Layout.parse(layout), packed.contiguous().clone()
    packing.split(ones, rows, columns, order)[0].fill_(1)
    return packing.unpack(ones, rows, columns, order) != 0


def _fake_compress_like(x: Tensor, packed: Tensor, layout: str) -> Tensor:
    return packed.new_empty(packed.shape)


def _compress_like(x: Tensor, packed: Tensor, layout: str) -> Tensor:
    order, result = Layout.parse(layout), packed.contiguous().clone()
    rows, columns = x.shape
    r_pad, c_pad = order.padded(rows, columns)
    whole = F.pad(x, (0, c_pad - columns, 0, r_pad - rows)).view(r_pad, c_pad // 4, 4)
    values, _ = packing.split(result, rows, columns, order)
    indices = packing.kept_indices(packed, rows, columns, order)
    values.copy_(whole.gather(-1, indices).view(values.shape))
    return result


def _on_cuda(kernel: Callable[..., Tensor], otherwise: Callable[..., Tensor]) -> Any:
    """The kernel where it exists."""

    def run(*args: Any) -> Tensor:
        *rest, layout = args
        packed = next(a for a in reversed(rest) if isinstance(a, Tensor))
        if not unpack.can_launch(packed):
            return otherwise(*args)
        return kernel(*rest, Layout.parse(layout))

    return run


_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_LIBRARY.define(
    "unpack_mask(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor", tags=_TAGS
)
_LIBRARY.define("compress_like(Tensor x, Tensor packed, str layout) -> Tensor", tags=_TAGS)
_LIBRARY.impl("unpack_mask", _unpack_mask, "CompositeExplicitAutograd")
_LIBRARY.impl("compress_like", _compress_like, "CompositeExplicitAutograd")
_LIBRARY.impl("unpack_mask", _on_cuda(unpack.unpack_mask, _unpack_mask), "CUDA")
_LIBRARY.impl("compress_like", _on_cuda(unpack.compress_like, _compress_like), "CUDA")
_LIBRARY.impl("decompress", _on_cuda(unpack.decompress, decompress_in_pytorch), "CUDA")
torch.library.register_fake("nm::unpack_mask", _fake_unpack_mask, lib=_LIBRARY)
torch.library.register_fake("nm::compress_like", _fake_compress_like, lib=_LIBRARY)
