"""``nm::prune`` and ``nm::keep_mask`` on CUDA: compressed and decompressed by generated kernels.

For 16-bit operands, 2:4 and 1:2, MSE (and MVUE for ``prune``), along the last or all but the last
dimension of a contiguous tensor, or of a transposed matrix; everything else is the reference in
plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nmcompile.codegen import launch, unpack
from nmcompile.codegen.kernel_spec import identity
from nmcompile.compressed.layouts import Layout
from nmcompile.masks import reference
from nmcompile.masks.formats import Method
from nmcompile.ops.fused import is_generated

_LIBRARY = torch.library.Library("nm", "IMPL")


def prune(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    """As ``nm::prune``."""
    if _is_transposed(x) and len(dims) == 1:
        return prune(x.t(), seed, stream, n, m, [1 - dims[0] % 2], method).t()
    matrix = _matrix(x, n, m, dims, method)
    if matrix is None:
        return reference.prune_and_mask(x, seed, stream, n, m, dims, method)[0]
    packed, rows, columns = _packed(*matrix, seed, stream, n, m, method)
    result = unpack.decompress(packed, rows, columns, Layout.ROW_MAJOR)
    return _like(x, result, matrix[1])


def keep_mask(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    """As ``nm::keep_mask``."""
    if _is_transposed(x) and len(dims) == 1:
        return keep_mask(x.t(), seed, stream, n, m, [1 - dims[0] % 2], method).t()
    matrix = _matrix(x, n, m, dims, method)
    if matrix is None or method != Method.MSE:  # metadata does not tell a missing survivor
        return reference.prune_and_mask(x, seed, stream, n, m, dims, method)[1]
    packed, rows, columns = _packed(*matrix, seed, stream, n, m, method)
    result = unpack.unpack_mask(packed, rows, columns, Layout.ROW_MAJOR)
    return _like(x, result, matrix[1])


def _is_transposed(x: Tensor) -> bool:
    """Is it a matrix that lies column by column? Blocks keep their numbers in its transpose."""
    return x.dim() == 2 and x.t().is_contiguous() and not x.is_contiguous()


def _matrix(
    x: Tensor, n: int, m: int, dims: Sequence[int], method: str
) -> tuple[Tensor, int] | None:
    """``x`` as ``[R, C]`` and the dimension of its blocks; None where no kernel takes it."""
    fits = x.is_contiguous() and x.numel() > 0 and (n, m) in ((2, 4), (1, 2))
    if not fits or not is_generated(x, method):
        return None
    positive = [d % x.dim() for d in dims]
    if positive == [x.dim() - 1]:
        return x.view(-1, x.shape[-1]), 1
    if positive == list(range(x.dim() - 1)):
        return x.view(math.prod(x.shape[:-1]), x.shape[-1]), 0
    return None


def _packed(
    x: Tensor, dim: int, seed: Tensor | None, stream: int, n: int, m: int, method: str
) -> tuple[Tensor, int, int]:
    spec = identity(x.dtype, (dim,), n, m, method, Layout.ROW_MAJOR)
    (packed,) = launch.run(spec, [x], seed, [stream])
    rows, columns = x.shape if dim == 1 else x.shape[::-1]
    return packed, rows, columns


def _like(x: Tensor, result: Tensor, dim: int) -> Tensor:
    return (result if dim == 1 else result.t().contiguous()).view(x.shape)


_LIBRARY.impl("prune", prune, "CUDA")
_LIBRARY.impl("keep_mask", keep_mask, "CUDA")
