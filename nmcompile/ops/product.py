"""``nm::mm``: the sparse library of the layout on CUDA, unpack and multiply elsewhere.

``nm::library_mm`` is the call of cuSPARSELt alone, of operands that need nothing else.

On the CPU the unpacked operand A gives what the dense product of the graph gives, bit for bit:
``torch.mm(A, dense)``, or with ``transpose_result`` the product that has A on the right,
``torch.mm(dense.t(), A.t())``. Float32 products of a few rows depend there on how an operand lies
in memory, which is what ``column_major`` is for. ``row_major`` is unpacked everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nmcompile import _cuda
from nmcompile.compressed import algorithms, cusparselt, packing, plans
from nmcompile.compressed.layouts import Layout
from nmcompile.ops.schemas import LIBRARY, LibraryMm, Mm


def _unpack_and_multiply(call: Mm) -> Tensor:
    layout = Layout.parse(call.layout)
    _check(call, layout)
    a = packing.unpack(call.packed.contiguous(), call.rows, call.dense.shape[0], layout)
    if call.column_major:
        a = a.t().contiguous().t()
    if call.transpose_result:
        return _product(call.dense.t(), a.t(), call.bias)
    return _product(a, call.dense, None if call.bias is None else call.bias[:, None])


def _product(lhs: Tensor, rhs: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(lhs, rhs) if bias is None else torch.addmm(bias, lhs, rhs)


def by_library(call: Mm) -> Tensor:
    """The product by cuSPARSELt or CUTLASS, padded to what they take and cut to what was asked."""
    layout, rows = Layout.parse(call.layout), call.rows
    if layout is Layout.ROW_MAJOR or rows * call.dense.numel() == 0:
        return _unpack_and_multiply(call)
    _check(call, layout)
    if call.dense.dtype not in cusparselt.DTYPES:
        raise TypeError(
            f"sparse products on CUDA take bfloat16 and float16, not {call.dense.dtype}"
        )
    k, columns = call.dense.shape
    r_pad, k_pad = layout.padded(rows, k)
    packed = _readable(call.packed)
    dense = _readable(_pad(call.dense, (0, -columns % 8, 0, k_pad - k)), transposable=True)
    bias = None if call.bias is None else _readable(_pad(call.bias, (0, r_pad - rows)))
    if layout is Layout.CUTLASS_SM80:
        values, metadata = packing.split(packed, rows, k, layout)
        metadata = metadata.view(torch.int16).view(r_pad, k_pad // 16)
        result = _cuda.cutlass_sparse_mm(values, metadata, dense, bias)
        result = result.t() if call.transpose_result else result
    else:
        # A search waits for the device, which a capture must not.
        capturing = dense.is_cuda and torch.cuda.is_current_stream_capturing()
        how = layout, call.transpose_result, bias is not None
        number = 0 if capturing else algorithms.fastest_for(r_pad, dense, *how)
        result = plans.mm(packed, dense, bias, call.transpose_result, number)
    size = (columns, rows) if call.transpose_result else (rows, columns)
    return result[: size[0], : size[1]].contiguous()


def _pad(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return F.pad(x, sizes) if any(sizes) else x  # F.pad copies for zero sizes too


def _readable(x: Tensor, transposable: bool = False) -> Tensor:
    """``x`` as the libraries can read it: without gaps (they check no strides) and aligned.

    Args:
        x: a 1-D or 2-D tensor.
        transposable: whether ``x.t()`` may be contiguous instead.
    """
    if not (x.is_contiguous() or (transposable and x.t().is_contiguous())):
        x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _check(call: Mm, layout: Layout) -> None:
    packed, dense, rows, bias = call.packed, call.dense, call.rows, call.bias
    if dense.dim() != 2:
        raise ValueError(f"the dense operand must be 2-D [K, N], its shape is {list(dense.shape)}")
    if packed.dtype != dense.dtype:
        raise TypeError(f"the operands' dtypes differ: {packed.dtype} (packed), {dense.dtype}")
    packing.check_packed(packed, rows, dense.shape[0], layout)
    if bias is not None and (tuple(bias.shape) != (rows,) or bias.dtype != dense.dtype):
        raise ValueError(
            f"the bias must be {dense.dtype} of shape ({rows},), one for each row of the packed "
            f"operand; it is {bias.dtype} of shape {tuple(bias.shape)}"
        )


LIBRARY.impl("mm", lambda *args: _unpack_and_multiply(Mm(*args)), "CompositeExplicitAutograd")
LIBRARY.impl("mm", lambda *args: by_library(Mm(*args)), "CUDA")
LIBRARY.impl(
    "library_mm",
    # The dispatcher leaves out arguments that are their defaults.
    lambda *args: plans.mm(*LibraryMm(*args).args),
    "CompositeExplicitAutograd",
)
