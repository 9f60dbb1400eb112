"""``nm::prune`` and ``nm::keep_mask``: one kernel, compiled C++ on the CPU and Triton on CUDA.

On CUDA a float64 operand is the oracle's, in plain PyTorch, and so is every one where there is no
Triton; a warning says so, once.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from nmcompile.codegen import masks
from nmcompile.codegen.cpu import kernel as cpu
from nmcompile.compressed.hardware import has_triton
from nmcompile.errors import NMWarning
from nmcompile.masks import reference
from nmcompile.masks.blocks import dense_copy, layout_of
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.ops.schemas import LIBRARY, KeepMask, Mask, Prune


def empty_result(call: Mask) -> Tensor:
    """What a kernel writes to."""
    return torch.empty_like(call.x, dtype=torch.bool if isinstance(call, KeepMask) else None)


def _by_reference(call: Mask) -> Tensor:
    pruned, kept = reference.prune_and_mask(*call.args)
    return kept if isinstance(call, KeepMask) else pruned


# -- on the CPU ----------------------------------------------------------------------------------


def _on_cpu(call: Mask) -> Tensor:
    kernel = cpu.kernel(_kind(call, call.x.dtype))
    if kernel is None:
        return _by_reference(call)
    out = empty_result(call)
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


def _on_cuda(call: Mask) -> Tensor:
    if not masks.has_kernel(call.x.dtype):
        _no_kernel(call.x.dtype)
        return _by_reference(call)
    out = empty_result(call)
    if out.numel():
        form = NMFormat(call.n, call.m)
        masks.run(call.x, out, form, call.dims, call.method, call.seed, call.stream)
    return out


@functools.cache
def _no_kernel(dtype: torch.dtype) -> None:
    why = f"there is none for {dtype}" if has_triton() else "Triton is not installed"
    warnings.warn(
        f"masks on CUDA are computed by plain PyTorch instead of a kernel ({why}), which takes "
        "hundreds of launches and many times the memory",
        NMWarning,
        stacklevel=2,
    )


def _register(cls: type[Mask]) -> None:
    name = cls.operator.name()

    def implementation(compute: Any) -> Any:
        return lambda *args: compute(cls(*args))

    LIBRARY.impl(name, implementation(_on_cpu), "CPU")
    LIBRARY.impl(name, implementation(_on_cuda), "CUDA")
    LIBRARY.impl(name, implementation(_by_reference), "CompositeExplicitAutograd")


_register(Prune)
_register(KeepMask)
