"""``nm::decompress``, ``nm::unpack_mask``, ``nm::compress_like``: what a packed operand kept.

On CUDA they are Triton kernels for 16-bit types (``codegen.unpack``), elsewhere plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nmcompile.codegen import unpack
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.ops.schemas import LIBRARY, CompressLike, Decompress, UnpackMask


def _decompress(call: Decompress) -> Tensor:
    layout = Layout.parse(call.layout)
    cusparselt.check_readable(call.packed, layout)
    return packing.unpack(call.packed.contiguous(), call.rows, call.columns, layout)


def _unpack_mask(call: UnpackMask) -> Tensor:
    return packing.unpack_mask(call.packed, call.rows, call.columns, Layout.parse(call.layout))


def _compress_like(call: CompressLike) -> Tensor:
    layout = Layout.parse(call.layout)
    result: Tensor = call.packed.contiguous().clone()
    rows, columns = call.x.shape
    r_pad, c_pad = layout.padded(rows, columns)
    whole = F.pad(call.x, (0, c_pad - columns, 0, r_pad - rows)).view(r_pad, c_pad // 4, 4)
    values, _ = packing.split(result, rows, columns, layout)
    indices = packing.kept_indices(call.packed, rows, columns, layout)
    values.copy_(whole.gather(-1, indices).view(values.shape))
    return result


def _register(cls: Any, compute: Callable[[Any], Tensor], kernel: Callable[..., Tensor]) -> None:
    def on_cuda(*args: Any) -> Tensor:
        call = cls(*args)
        if not unpack.can_launch(call.packed):
            return compute(call)
        return kernel(*args[:-1], Layout.parse(call.layout))

    name = cls.operator.name()
    LIBRARY.impl(name, lambda *args: compute(cls(*args)), "CompositeExplicitAutograd")
    LIBRARY.impl(name, on_cuda, "CUDA")


_register(Decompress, _decompress, unpack.decompress)
_register(UnpackMask, _unpack_mask, unpack.unpack_mask)
_register(CompressLike, _compress_like, unpack.compress_like)
