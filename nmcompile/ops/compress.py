"""The operators ``torch.ops.nm.compress``, ``decompress`` and ``mm``, for 2:4 and 1:2 operands.

    compress(Tensor x, Tensor? seed, int[] streams, int[] dims, int n, int m, str method,
             str layout) -> Tensor[]
        One packed tensor per entry of dims: for 1 the operand x [R, C], for 0 the operand x^T
        [C, R], each with a mask of its own (its stream of random numbers) along the operand's
        columns: the mask that nm::prune makes of x along that dimension. x is 2-D, any strides.
    decompress(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor
        The dense operand [rows, columns], contiguous.
    mm(Tensor packed, Tensor dense, SymInt rows, str layout, Tensor? bias=None,
       bool transpose_result=False, bool column_major=False) -> Tensor
        The operand [rows, K] times dense [K, N]: [rows, N], or [N, rows] with transpose_result,
        contiguous. bias [rows] is added to every column of the product.

All are pure functions. On the CPU, ``mm`` unpacks the operand A and gives what the dense product of
the graph gives, bit for bit: ``torch.mm(A, dense)``, or with transpose_result the product that has
A on the right, ``torch.mm(dense.t(), A.t())``. The CPU's float32 products of a few rows depend on
how an operand lies in memory, so ``column_major`` says that A lies column by column in the graph
(A is x^T of a row-major x: dims 0); it changes nothing but that rounding, and nothing on a GPU.

On CUDA, ``mm`` calls the library of the layout; the blocks' format is not repeated there, because a
1:2 operand is a 2:4 operand too. ``row_major`` is unpacked and multiplied everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nmcompile import _torch
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks import reference
from nmcompile.masks.formats import NMFormat
from nmcompile.ops import masks as ops

_LIBRARY = torch.library.Library("nm", "FRAGMENT")


# -- compress and decompress -------------------------------------------------------------------


def _fake_compress(
    x: Tensor,
    seed: Tensor | None,
    streams: Sequence[int],
    dims: Sequence[int],
    n: int,
    m: int,
    method: str,
    layout: str,
) -> list[Tensor]:
    order = Layout.parse(layout)
    packing.check_format(NMFormat(n, m), method)
    return [x.new_empty(order.packed_shape(x.shape[1 - d], x.shape[d], x.dtype)) for d in dims]


def compress_in_pytorch(
    x: Tensor,
    seed: Tensor | None,
    streams: Sequence[int],
    dims: Sequence[int],
    n: int,
    m: int,
    method: str,
    layout: str,
) -> list[Tensor]:
    order, format = Layout.parse(layout), NMFormat(n, m)
    packing.check_format(format, method)
    masks = _masks_on_cpu if x.device.type == "cpu" else reference.prune_and_mask
    results = []
    for stream, dim in zip(streams, dims, strict=True):
        packed = packing.compress(x, seed, stream, format, dim, method, order, masks)
        if not cusparselt.reads(order, x):
            packed = cusparselt.repack(packed, x.shape[1 - dim], x.shape[dim], order)
        results.append(packed)
    return results


def _masks_on_cpu(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> tuple[Tensor, Tensor]:
    pruned = ops.prune(x, seed, stream, n, m, dims, method)
    return pruned, ops.keep_mask(x, seed, stream, n, m, dims, method)


def _fake_decompress(packed: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    return packed.new_empty(rows, columns)


def decompress_in_pytorch(packed: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    order = Layout.parse(layout)
    cusparselt.check_readable(packed, order)
    return packing.unpack(packed.contiguous(), rows, columns, order)


# -- products ----------------------------------------------------------------------------------


def _fake_mm(
    packed: Tensor,
    dense: Tensor,
    rows: int,
    layout: str,
    bias: Tensor | None = None,
    transpose_result: bool = False,
    column_major: bool = False,
) -> Tensor:
    columns = dense.shape[1]
    return dense.new_empty((columns, rows) if transpose_result else (rows, columns))


def _unpack_and_multiply(
    packed: Tensor,
    dense: Tensor,
    rows: int,
    layout: str,
    bias: Tensor | None = None,
    transpose_result: bool = False,
    column_major: bool = False,
) -> Tensor:
    order = Layout.parse(layout)
    _check_product(packed, dense, rows, order, bias)
    a = packing.unpack(packed.contiguous(), rows, dense.shape[0], order)
    if column_major:
        a = a.t().contiguous().t()
    if transpose_result:
        return _product(dense.t(), a.t(), bias)
    return _product(a, dense, None if bias is None else bias[:, None])


def _product(lhs: Tensor, rhs: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(lhs, rhs) if bias is None else torch.addmm(bias, lhs, rhs)


def _library_mm(
    packed: Tensor,
    dense: Tensor,
    rows: int,
    layout: str,
    bias: Tensor | None = None,
    transpose_result: bool = False,
    column_major: bool = False,
) -> Tensor:
    order = Layout.parse(layout)
    if order is Layout.ROW_MAJOR or rows * dense.numel() == 0:
        return _unpack_and_multiply(
            packed, dense, rows, layout, bias, transpose_result, column_major
        )
    _check_product(packed, dense, rows, order, bias)
    if dense.dtype not in cusparselt.DTYPES:
        raise TypeError(f"sparse products on CUDA take bfloat16 and float16, not {dense.dtype}")
    k, columns = dense.shape
    r_pad, k_pad = order.padded(rows, k)
    packed = _readable(packed)
    dense = _readable(_pad(dense, (0, -columns % 8, 0, k_pad - k)), transposable=True)
    if bias is not None:
        bias = _readable(_pad(bias, (0, r_pad - rows)))
    result: Tensor
    if order is Layout.CUTLASS_SM80:
        values, metadata = packing.split(packed, rows, k, order)
        metadata = metadata.view(torch.int16).view(r_pad, k_pad // 16)
        if bias is None:
            result = _torch.private("torch", "_sparse_semi_structured_mm")(values, metadata, dense)
        else:
            result = _torch.private("torch", "_sparse_semi_structured_addmm")(
                bias, values, metadata, dense
            )
        result = result.t() if transpose_result else result
    else:
        # No alpha (it would wait for the device) and algorithm 0, the only one that was checked.
        result = _torch.private("torch", "_cslt_sparse_mm")(
            packed, dense, bias, transpose_result=transpose_result
        )
    size = (columns, rows) if transpose_result else (rows, columns)
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


def _check_product(
    packed: Tensor, dense: Tensor, rows: int, layout: Layout, bias: Tensor | None
) -> None:
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


_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_LIBRARY.define(
    "compress(Tensor x, Tensor? seed, int[] streams, int[] dims, int n, int m, str method, "
    "str layout) -> Tensor[]",
    tags=_TAGS,
)
_LIBRARY.define(
    "decompress(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor", tags=_TAGS
)
_LIBRARY.define(
    "mm(Tensor packed, Tensor dense, SymInt rows, str layout, Tensor? bias=None, "
    "bool transpose_result=False, bool column_major=False) -> Tensor",
    tags=_TAGS,
)
_LIBRARY.impl("compress", compress_in_pytorch, "CompositeExplicitAutograd")
_LIBRARY.impl("decompress", decompress_in_pytorch, "CompositeExplicitAutograd")
_LIBRARY.impl("mm", _unpack_and_multiply, "CompositeExplicitAutograd")
_LIBRARY.impl("mm", _library_mm, "CUDA")
torch.library.register_fake("nm::compress", _fake_compress, lib=_LIBRARY)
torch.library.register_fake("nm::decompress", _fake_decompress, lib=_LIBRARY)
torch.library.register_fake("nm::mm", _fake_mm, lib=_LIBRARY)

Compress = Callable[
    [Tensor, Tensor | None, Sequence[int], Sequence[int], int, int, str, str], list[Tensor]
]
compress: Compress = torch.ops.nm.compress.default
decompress: Callable[[Tensor, int, int, str], Tensor] = torch.ops.nm.decompress.default
mm: Callable[..., Tensor] = torch.ops.nm.mm.default
