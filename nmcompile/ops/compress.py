"""``nm::compress``, ``nm::fused_compress``: generated kernels on CUDA, PyTorch elsewhere.

``nm::pack`` is what cuSPARSELt makes of a pruned operand.

On the CPU the oracle of a spec does the work of its kernel, or the kernel itself in Triton's
interpreter (TRITON_INTERPRET=1, set before Triton is imported).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nmcompile.codegen import launch
from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.kernel_spec import KernelSpec, identity
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks import reference
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.ops.fused_schemas import FusedCompress, spec_of
from nmcompile.ops.schemas import LIBRARY, Compress, CompressLike, KeepMask, Pack, Prune


def _in_pytorch(call: Compress) -> list[Tensor]:
    x, layout, format = call.x, Layout.parse(call.layout), NMFormat(call.n, call.m)
    packing.check_format(format, call.method)
    masks = _by_kernels if x.device.type in ("cpu", "cuda") else reference.prune_and_mask
    results = []
    for stream, dim in zip(call.streams, call.dims, strict=True):
        packed = packing.compress(x, call.seed, stream, format, dim, call.method, layout, masks)
        if not cusparselt.reads(layout, x):
            packed = cusparselt.repack(packed, x.shape[1 - dim], x.shape[dim], layout)
        results.append(packed)
    return results


def _by_kernels(*args: Any) -> tuple[Tensor, Tensor]:
    return Prune.operator(*args), KeepMask.operator(*args)


def _on_cuda(call: Compress) -> list[Tensor]:
    x, dims = call.x, list(call.dims)
    opaque = Layout.parse(call.layout).opaque
    if opaque or not launch.is_generated(x, call.method) or x.numel() == 0:
        return _in_pytorch(call)
    if x.stride(0) == 1 and x.stride(1) != 1:  # the rows in memory are x's columns
        x, dims = x.t(), [1 - d for d in dims]
    elif x.stride(1) != 1:
        x = x.contiguous()
    results: dict[int, Tensor] = {}
    for some in _kernels_of(dims):
        kind = (call.n, call.m, call.method, call.layout)
        spec = identity(x.dtype, tuple(dims[i] for i in some), *kind)
        packed = launch.run(spec, [x], call.seed, [call.streams[i] for i in some])
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
    sizes += [(rows, columns) for _ in spec.alike]
    packed = [
        cusparselt.repack(p, *size, spec.layout)
        for p, size in zip(results[: len(sizes)], sizes, strict=True)
    ]
    return packed + results[len(sizes) :]


def _fused_on_cpu(call: FusedCompress) -> list[Tensor]:
    spec = spec_of(call.spec)
    if launch.interpreted() and spec.dtype == "float16":  # bfloat16 is wrong there
        return launch.run(spec, call.inputs, call.seed, call.streams)
    values = evaluate(spec, call.inputs, *launch.operand_shape(spec, call.inputs))
    kind = (spec.n, spec.m, spec.method, str(spec.layout))
    streams, packed = iter(call.streams), []
    for operand, value in zip(spec.operands, values, strict=True):
        some = [next(streams) for _ in operand.dims]
        packed += _in_pytorch(Compress(value, call.seed, some, operand.dims, *kind))
    given = {i.name: x for i, x in zip(spec.inputs, call.inputs, strict=True)}
    for name in spec.alike:  # of a kernel with one packed operand
        packed.append(CompressLike(given[name], packed[0], str(spec.layout)).run())
    kept = zip(spec.operands, values, strict=True)
    return packed + [value for operand, value in kept if operand.keep_dense]


def _fused_on_cuda(call: FusedCompress) -> list[Tensor]:
    spec = spec_of(call.spec)
    results = launch.run(spec, call.inputs, call.seed, call.streams)
    return _as_the_library_reads(spec, results, *launch.operand_shape(spec, call.inputs))


def _pack(call: Pack) -> Tensor:
    """The mask is that of MSE, which keeps all of a pruned operand."""
    x, layout = call.x, Layout.parse(call.layout)
    if x.numel() and not cusparselt.reads(layout, x):
        return cusparselt.pack(x, layout)
    return packing.compress(x, None, 0, NMFormat(2, 4), 1, Method.MSE, layout)


for _device, _compute in (("CompositeExplicitAutograd", _in_pytorch), ("CUDA", _on_cuda)):
    LIBRARY.impl("compress", lambda *args, run=_compute: run(Compress(*args)), _device)
for _device, _fused in (("CPU", _fused_on_cpu), ("CUDA", _fused_on_cuda)):
    LIBRARY.impl("fused_compress", lambda *args, run=_fused: run(FusedCompress(*args)), _device)
LIBRARY.impl("pack", lambda *args: _pack(Pack(*args)), "CompositeExplicitAutograd")
