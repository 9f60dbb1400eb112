"""What cuSPARSELt itself writes: a check of our packed operands, and the way out when it fails.

NVIDIA calls the compressed format internal to the library, so it is compared once on each GPU.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nmcompile import _cuda
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning
from nmcompile.masks import reference
from nmcompile.masks.formats import Method, NMFormat

#: The dtypes whose 2:4 products the libraries compute from our packed operands.
DTYPES = (torch.bfloat16, torch.float16)


def reads(layout: Layout, x: Tensor) -> bool:
    """Whether packed operands like ``x`` are what the library of ``layout`` reads.

    Only where cuSPARSELt would read them can the answer be False: on CUDA, after a check of one
    small operand per device, version of the library, dtype and layout, with a warning. The check
    waits for the device: let it happen before a CUDA graph is captured. Where the answer is False,
    ``nm::compress`` returns what the library packs (``repack``) and ``nm::decompress`` raises. An
    opaque layout is never ours, and needs no check.
    """
    if x.device.type != "cuda" or not layout.by_cusparselt or x.dtype not in DTYPES:
        return True
    return not layout.opaque and _reads(layout, x.dtype, x.device, _version())


def check_readable(packed: Tensor, layout: Layout) -> None:
    """Raise RuntimeError if the library packed ``packed`` itself, in an order that is not ours."""
    if not reads(layout, packed):
        raise RuntimeError(
            f"cannot unpack: cuSPARSELt packed this operand on {packed.device}, in another layout "
            f"than {layout}"
        )


@functools.cache
def _version() -> int | None:
    """That of the library, None where this torch has none."""
    library = torch.backends.cusparselt
    return library.version() if library.is_available() else None


@functools.cache
def _reads(layout: Layout, dtype: torch.dtype, device: torch.device, version: int | None) -> bool:
    same = version is None or writes_layout(_cuda.cusparselt_compress, layout, dtype, device)
    if not same:
        warnings.warn(
            f"cuSPARSELt {version} on {device} does not write layout {layout} for {dtype}: it "
            "packs every operand itself, from a pruned dense copy, which is slower",
            NMWarning,
            stacklevel=2,
        )
    return same


def writes_layout(
    compressor: Callable[[Tensor], Tensor], layout: Layout, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether ``compressor`` packs a random 2:4 operand, 16-bit, into the bytes of ``layout``."""
    shape = 3 * layout.row_multiple, 5 * layout.column_multiple
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    # Both survivors of every block are non-zero: the library's rule for other blocks is not ours.
    values, keep = reference.prune_and_mask(x, None, 0, 2, 4, [1], Method.MSE)
    ours = packing.pack(keep, values, shape, layout, NMFormat(2, 4), Method.MSE)
    theirs = compressor(values.to(device)).cpu()
    return theirs.shape == ours.shape and torch.equal(
        theirs.view(torch.int16), ours.view(torch.int16)
    )


def pack(x: Tensor, layout: Layout) -> Tensor:
    """A pruned operand ``[R, C]`` of any strides, on CUDA, as cuSPARSELt itself packs it.

    Raises:
        RuntimeError: when the library's packed tensor has another size than ours.
    """
    rows, columns = x.shape
    r_pad, c_pad = layout.padded(rows, columns)
    dense = F.pad(x, (0, c_pad - columns, 0, r_pad - rows)) if (r_pad, c_pad) != x.shape else x
    packed: Tensor = _cuda.cusparselt_compress(dense.contiguous())
    expected = layout.packed_shape(rows, columns, x.dtype)
    if tuple(packed.shape) != expected:
        raise RuntimeError(
            f"cuSPARSELt packs a {r_pad} x {c_pad} operand on {x.device} into "
            f"{tuple(packed.shape)} elements, not into {expected}: this GPU's sparse products are "
            'not known; write execution = "simulate"'
        )
    return packed


def repack(packed: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """Our packed operand ``[rows, columns]``, packed again by cuSPARSELt (``pack``)."""
    if packed.numel() == 0:
        return packed
    return pack(packing.unpack(packed, rows, columns, layout), layout)
