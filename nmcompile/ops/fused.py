"""The operator ``torch.ops.nm.fused_compress``, and ``nm::compress`` on CUDA: generated kernels.

    fused_compress(Tensor[] inputs, Tensor? seed, int[] streams, str spec) -> Tensor[]

    inputs   the tensors of the spec's prologue: 2-D where they are whole operands, else flat
    spec     a ``codegen.KernelSpec`` as JSON

Returns one packed tensor for each of the spec's dims, then the operand itself where the spec keeps
it. On the CPU the spec's oracle does the work, or the kernel in Triton's interpreter
(TRITON_INTERPRET=1, set before Triton is imported).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from nmcompile.codegen import launch
from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.kernel_spec import STORAGE, KernelSpec, identity
from nmcompile.compressed import cusparselt
from nmcompile.compressed.hardware import has_triton
from nmcompile.masks.formats import Method
from nmcompile.ops import compress as ops_compressed

_LIBRARY = torch.library.Library("nm", "FRAGMENT")


def is_generated(x: Tensor, method: str) -> bool:
    """Whether a kernel is generated for operands like ``x``, 2-D."""
    return has_triton() and x.dtype in STORAGE and method in (Method.MSE, Method.MVUE)


@functools.lru_cache(maxsize=1024)
def _parse(spec: str) -> KernelSpec:
    return KernelSpec.from_json(spec)


def _fake(
    inputs: Sequence[Tensor],
    seed: Tensor | None,
    streams: Sequence[int],
    spec: str,
) -> list[Tensor]:
    parsed = _parse(spec)
    shapes = launch.result_shapes(parsed, *launch.operand_shape(parsed, inputs))
    return [inputs[0].new_empty(s, dtype=getattr(torch, parsed.dtype)) for s in shapes]


def _on_cpu(
    inputs: Sequence[Tensor],
    seed: Tensor | None,
    streams: Sequence[int],
    spec: str,
) -> list[Tensor]:
    parsed = _parse(spec)
    if launch.interpreted() and parsed.dtype == "float16":  # bfloat16 is wrong there
        return launch.run(parsed, inputs, seed, streams)
    operand = evaluate(parsed, inputs, *launch.operand_shape(parsed, inputs))
    layout = str(parsed.layout)
    packed = ops_compressed.compress(
        operand, seed, streams, parsed.dims, parsed.n, parsed.m, parsed.method, layout
    )
    return [*packed, operand] if parsed.keep_dense else packed


def _on_cuda(
    inputs: Sequence[Tensor],
    seed: Tensor | None,
    streams: Sequence[int],
    spec: str,
) -> list[Tensor]:
    parsed = _parse(spec)
    results = launch.run(parsed, inputs, seed, streams)
    return _as_the_library_reads(parsed, results, *launch.operand_shape(parsed, inputs))


def _compress_on_cuda(
    x: Tensor,
    seed: Tensor | None,
    streams: Sequence[int],
    dims: Sequence[int],
    n: int,
    m: int,
    method: str,
    layout: str,
) -> list[Tensor]:
    if not is_generated(x, method) or x.numel() == 0:
        return ops_compressed.compress_in_pytorch(x, seed, streams, dims, n, m, method, layout)
    if x.stride(0) == 1 and x.stride(1) != 1:  # the rows in memory are x's columns
        x, dims = x.t(), [1 - d for d in dims]
    elif x.stride(1) != 1:
        x = x.contiguous()
    results: dict[int, Tensor] = {}
    for some in _kernels_of(dims):
        spec = identity(x.dtype, tuple(dims[i] for i in some), n, m, method, layout)
        packed = launch.run(spec, [x], seed, [streams[i] for i in some])
        results |= zip(some, _as_the_library_reads(spec, packed, *x.shape), strict=True)
    return [results[i] for i in range(len(dims))]


def _kernels_of(dims: Sequence[int]) -> list[list[int]]:
    """Positions of ``dims`` by kernel: one kernel for two different ones, else one for each."""
    if sorted(dims) == [0, 1]:
        return [[dims.index(1), dims.index(0)]]  # in one order, so that it is one kernel
    return [[i] for i in range(len(dims))]


def _as_the_library_reads(
    spec: KernelSpec, results: list[Tensor], rows: int, columns: int
) -> list[Tensor]:
    if cusparselt.reads(spec.layout, results[0]):
        return results
    sizes = [(rows, columns) if dim == 1 else (columns, rows) for dim in spec.dims]
    packed = [
        cusparselt.repack(p, *size, spec.layout)
        for p, size in zip(results[: len(sizes)], sizes, strict=True)
    ]
    return packed + results[len(sizes) :]


_LIBRARY.define(
    "fused_compress(Tensor[] inputs, Tensor? seed, int[] streams, str spec) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)
_LIBRARY.impl("fused_compress", _on_cpu, "CPU")
_LIBRARY.impl("fused_compress", _on_cuda, "CUDA")
_LIBRARY.impl("compress", _compress_on_cuda, "CUDA")
torch.library.register_fake("nm::fused_compress", _fake, lib=_LIBRARY)

fused_compress = torch.ops.nm.fused_compress.default
