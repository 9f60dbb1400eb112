"""``nm::prune`` and ``nm::keep_mask``: a compiled kernel on the CPU, generated ones on CUDA.

On CUDA 16-bit operands, 2:4 and 1:2, MSE (and MVUE for ``prune``), along the last or all but the
last dimension of a contiguous tensor, or of a transposed matrix, are compressed and decompressed by
two generated kernels. Everything else is the oracle in plain PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nmcompile.codegen import launch, unpack
from nmcompile.codegen.cpu import kernel as cpu
from nmcompile.codegen.kernel_spec import identity
from nmcompile.compressed.layouts import Layout
from nmcompile.masks import reference
from nmcompile.masks.blocks import dense_copy, layout_of
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.ops.schemas import LIBRARY, KeepMask, Mask, Prune


def _by_reference(call: Mask) -> Tensor:
    pruned, kept = reference.prune_and_mask(*call.args)
    return kept if isinstance(call, KeepMask) else pruned


# -- on the CPU ----------------------------------------------------------------------------------


def _on_cpu(call: Mask) -> Tensor:
    kernel = cpu.kernel(_kind(call, call.x.dtype))
    if kernel is None:
        return _by_reference(call)
    out = torch.empty_like(call.x, dtype=torch.bool if isinstance(call, KeepMask) else None)
    if out.numel() == 0:
        return out
    dense = dense_copy(call.x)
    layout = layout_of(dense, call.dims, call.m, tiles=call.method == Method.TRANSPOSABLE)
    if layout.direct:
        kernel(dense, out, layout, call.seed, call.stream)
    else:
        result = torch.empty(layout.outer, layout.size, layout.inner, dtype=out.dtype)
        kernel(layout.view(dense), result, layout, call.seed, call.stream)
        layout.write(result, out)
    return out


def _kind(call: Mask, dtype: torch.dtype) -> cpu.KernelKind:
    keep = isinstance(call, KeepMask)
    return cpu.KernelKind(NMFormat(call.n, call.m), Method(call.method), dtype, mask=keep)


def warm_up(call: Mask, x: Tensor) -> None:
    """Build the kernel of a call in the background; ``x`` is its operand, or a fake of it."""
    if x.device.type == "cpu":
        cpu.warm_up(_kind(call, x.dtype))


# -- on CUDA -------------------------------------------------------------------------------------


def on_cuda(call: Mask) -> Tensor:
    """The generated kernels where they take the operand, else the oracle."""
    if _is_transposed(call.x) and len(call.dims) == 1:
        return on_cuda(replace(call, x=call.x.t(), dims=[1 - call.dims[0] % 2])).t()
    matrix = as_matrix(call)
    if matrix is None:
        return _by_reference(call)
    x, dim = matrix
    spec = identity(x.dtype, (dim,), call.n, call.m, call.method, Layout.ROW_MAJOR)
    (packed,) = launch.run(spec, [x], call.seed, [call.stream])
    rows, columns = x.shape if dim == 1 else x.shape[::-1]
    expand = unpack.unpack_mask if isinstance(call, KeepMask) else unpack.decompress
    result = expand(packed, rows, columns, Layout.ROW_MAJOR)
    return (result if dim == 1 else result.t().contiguous()).view(call.x.shape)


def as_matrix(call: Mask) -> tuple[Tensor, int] | None:
    """The operand as ``[R, C]`` and the dimension of its blocks; None where no kernel takes it."""
    x: Tensor = call.x
    fits = x.is_contiguous() and x.numel() > 0 and (call.n, call.m) in ((2, 4), (1, 2))
    if not fits or not launch.is_generated(x, call.method):
        return None
    if isinstance(call, KeepMask) and call.method != Method.MSE:
        return None  # metadata does not tell a missing survivor
    positive = [d % x.dim() for d in call.dims]
    if positive == [x.dim() - 1]:
        return x.view(-1, x.shape[-1]), 1
    if positive == list(range(x.dim() - 1)):
        return x.view(math.prod(x.shape[:-1]), x.shape[-1]), 0
    return None


def _is_transposed(x: Tensor) -> bool:
    """Is it a matrix that lies column by column? Blocks keep their numbers in its transpose."""
    return x.dim() == 2 and x.t().is_contiguous() and not x.is_contiguous()


def _register(cls: type[Mask]) -> None:
    name = cls.operator.name()

    def implementation(compute: Any) -> Any:
        return lambda *args: compute(cls(*args))

    LIBRARY.impl(name, implementation(_on_cpu), "CPU")
    LIBRARY.impl(name, implementation(on_cuda), "CUDA")
    LIBRARY.impl(name, implementation(_by_reference), "CompositeExplicitAutograd")


_register(Prune)
_register(KeepMask)
