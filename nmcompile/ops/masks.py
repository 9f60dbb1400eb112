"""The operators ``torch.ops.nm.prune`` and ``torch.ops.nm.keep_mask``.

    prune(Tensor x, Tensor? seed, int stream, int n, int m, int[] dims, str method) -> Tensor
    keep_mask(...the same...) -> Tensor                                               (bool)

    x       floating point, at least one dimension
    seed    int64, one element, on x's device, for the random methods; None for the others
    stream  which random numbers of the seed: operators with different streams are independent
    dims    the reduction dimensions, flattened in this order; blocks of m run along them, the
            last one padded with zeros. For "transposable" the two dimensions of the m x m tiles.
    method  a word of ``nmcompile.masks.formats.Method``

Both are pure functions of their arguments. The result has the strides of ``torch.empty_like(x)``
and never aliases ``x``. The arguments are trusted: ``nmcompile.functional`` and the compiler's
passes check them. On the CPU a compiled kernel does the work (``codegen.cpu``), elsewhere the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nmcompile.codegen.cpu import kernel as cpu
from nmcompile.masks import reference
from nmcompile.masks.blocks import dense_copy, layout_of
from nmcompile.masks.formats import Method, NMFormat

LIBRARY = torch.library.Library("nm", "DEF")
_ARGUMENTS = "(Tensor x, Tensor? seed, int stream, int n, int m, int[] dims, str method) -> Tensor"


def _fake_prune(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    return torch.empty_like(x)


def _fake_keep_mask(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)


def _reference_prune(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    return reference.prune_and_mask(x, seed, stream, n, m, dims, method)[0]


def _reference_keep_mask(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    return reference.prune_and_mask(x, seed, stream, n, m, dims, method)[1]


def _cpu_prune(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    kernel = cpu.kernel(cpu.KernelKind(NMFormat(n, m), Method(method), x.dtype, mask=False))
    if kernel is None:
        return _reference_prune(x, seed, stream, n, m, dims, method)
    return _run(kernel, x, torch.empty_like(x), seed, stream, m, dims, method)


def _cpu_keep_mask(
    x: Tensor, seed: Tensor | None, stream: int, n: int, m: int, dims: Sequence[int], method: str
) -> Tensor:
    kernel = cpu.kernel(cpu.KernelKind(NMFormat(n, m), Method(method), x.dtype, mask=True))
    if kernel is None:
        return _reference_keep_mask(x, seed, stream, n, m, dims, method)
    out = torch.empty_like(x, dtype=torch.bool)
    return _run(kernel, x, out, seed, stream, m, dims, method)


def _run(
    kernel: cpu.Kernel,
    x: Tensor,
    out: Tensor,
    seed: Tensor | None,
    stream: int,
    m: int,
    dims: Sequence[int],
    method: str,
) -> Tensor:
    if x.numel() == 0:
        return out
    dense = dense_copy(x)
    layout = layout_of(dense, dims, m, tiles=method == Method.TRANSPOSABLE)
    if layout.direct:
        kernel(dense, out, layout, seed, stream)
    else:
        result = torch.empty(layout.outer, layout.size, layout.inner, dtype=out.dtype)
        kernel(layout.view(dense), result, layout, seed, stream)
        layout.write(result, out)
    return out


for _name, _fake, _on_cpu, _elsewhere in (
    ("prune", _fake_prune, _cpu_prune, _reference_prune),
    ("keep_mask", _fake_keep_mask, _cpu_keep_mask, _reference_keep_mask),
):
    LIBRARY.define(
        _name + _ARGUMENTS, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    )
    LIBRARY.impl(_name, _on_cpu, "CPU")
    LIBRARY.impl(_name, _elsewhere, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nm::{_name}", _fake, lib=LIBRARY)

Operator = Callable[[Tensor, Tensor | None, int, int, int, Sequence[int], str], Tensor]
prune: Operator = torch.ops.nm.prune.default
keep_mask: Operator = torch.ops.nm.keep_mask.default


def warm_up(op: Operator, x: Tensor, n: int, m: int, method: str) -> None:
    """Build the kernel for operands like ``x`` in the background; ``x`` may be a fake tensor."""
    if x.device.type == "cpu":
        kind = cpu.KernelKind(NMFormat(n, m), Method(method), x.dtype, mask=op is keep_mask)
        cpu.warm_up(kind)
