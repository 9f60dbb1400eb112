"""Launch the kernels that read packed operands: ``codegen.device.expand``, for 16-bit types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nmcompile.codegen.kernel_spec import STORAGE
from nmcompile.codegen.launch import on_device
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.hardware import has_triton
from nmcompile.compressed.layouts import Layout

_BLOCK = 1024


def decompress(packed: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """As ``packing.unpack``."""
    out = packed.new_empty(rows, columns)
    packed = packed.contiguous()
    _launch("decompress_kernel", packed, (packed, out), rows, columns, layout)
    return out


def unpack_mask(packed: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """The keep mask of a packed operand, ``[rows, columns]``."""
    out = packed.new_empty(rows, columns, dtype=torch.bool)
    packed = packed.contiguous()
    _launch("unpack_mask_kernel", packed, (packed, out), rows, columns, layout)
    return out


def compress_like(x: Tensor, packed: Tensor, layout: Layout) -> Tensor:
    """As ``nm::compress_like``."""
    packed, out = packed.contiguous(), packed.clone()
    pointers = (x.contiguous(), packed, out)
    _launch("compress_like_kernel", packed, pointers, x.shape[0], x.shape[1], layout)
    return out


def can_launch(packed: Tensor) -> bool:
    """Whether these kernels exist for operands like ``packed``."""
    return packed.dtype in STORAGE and has_triton()


def _launch(
    name: str,
    packed: Tensor,
    pointers: tuple[Tensor, ...],
    rows: int,
    columns: int,
    layout: Layout,
) -> None:
    """Run a kernel of ``device.expand`` on its pointers, in their order."""
    from nmcompile.codegen.device import unpack

    cusparselt.check_readable(packed, layout)
    packing.check_packed(packed, rows, columns, layout)
    blocks = rows * ((columns + 3) // 4)
    if blocks == 0:
        return
    kernel: Any = getattr(unpack, name)
    sizes = (rows, columns, *layout.padded(rows, columns))
    whole = columns % 4 == 0 and all(p.data_ptr() % 16 == 0 for p in pointers)
    grid = (-(-blocks // _BLOCK),)
    with on_device(packed.device):
        kernel[grid](*pointers, *sizes, LAYOUT=str(layout), BLOCK=_BLOCK, WHOLE=whole)
