"""``nm::prune``, ``nm::prune_each``, ``nm::keep_mask``: a kernel, C++ on the CPU, Triton on CUDA.

``nm::fused_prune`` computes the operand too; on the CPU the oracle of its spec does.

On CUDA a float64 operand is the oracle's, in plain PyTorch, and so is every one where there is no
Triton; a warning says so, once.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nmcompile.codegen import launch, masks
from nmcompile.codegen.cpu import kernel as cpu
from nmcompile.codegen.evaluate import evaluate
from nmcompile.compressed.hardware import has_triton
from nmcompile.errors import NMWarning
from nmcompile.masks import reference
from nmcompile.masks.blocks import dense_copy, layout_of
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.ops.fused_schemas import FusedPrune, spec_of
from nmcompile.ops.schemas import LIBRARY, KeepMask, Mask, Prune, PruneEach, PruneInAnyLayout


def empty_result(call: Mask) -> Tensor:
    """What a kernel writes to."""
    return torch.empty_like(call.x, dtype=torch.bool if isinstance(call, KeepMask) else None)


def _by_reference(call: Mask) -> Tensor:
    pruned, kept = reference.prune_and_mask(*call.args)
    return kept if isinstance(call, KeepMask) else pruned


# -- on the CPU ----------------------------------------------------------------------------------


def _on_cpu(call: Mask) -> Tensor:
    return _all_on_cpu([call])[0]


def _all_on_cpu(calls: Sequence[Mask]) -> list[Tensor]:
    """The results of calls that differ in ``dims`` and ``stream`` alone."""
    call = calls[0]
    kernel = cpu.kernel(_kind(call, call.x.dtype))
    if kernel is None:
        return [_by_reference(c) for c in calls]
    outs = [empty_result(c) for c in calls]
    if call.x.numel() == 0:
        return outs
    dense, tiles = dense_copy(call.x), call.method == Method.TRANSPOSABLE
    in_place = []
    for c, out in zip(calls, outs, strict=True):
        layout = layout_of(dense, c.dims, c.m, tiles=tiles)
        if layout.direct:
            in_place.append(cpu.Result(out, layout, c.stream))
        else:
            result = torch.empty(layout.outer, layout.size, layout.inner, dtype=out.dtype)
            kernel(layout.view(dense), [cpu.Result(result, layout, c.stream)], c.seed)
            layout.write(result, out)
    if in_place:
        kernel(dense, in_place, call.seed)
    return outs


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
        how = launch_of(call, out)
        masks.run(how, masks.tensors(how.spec, [call.x], [out]), call.seed, call.stream)
    return out


def launch_of(call: Mask, out: Tensor) -> masks.MaskLaunch:
    """How the mask of a tensor is written to ``out``; both may be fake."""
    lie = masks.lie_of(call.x, out)
    return masks.launch_of(lie, NMFormat(call.n, call.m), tuple(call.dims), call.method)


@functools.cache
def _no_kernel(dtype: torch.dtype) -> None:
    why = f"there is none for {dtype}" if has_triton() else "Triton is not installed"
    warnings.warn(
        f"masks on CUDA are computed by plain PyTorch instead of a kernel ({why}), which takes "
        "hundreds of launches and many times the memory",
        NMWarning,
        stacklevel=2,
    )


# -- with what computes the operand ----------------------------------------------------------------


def _fused_on_cpu(call: FusedPrune) -> list[Tensor]:
    spec = spec_of(call.spec)
    (value,) = evaluate(spec, call.inputs, *launch.operand_shape(spec, call.inputs))
    pruned = call.mask(value.as_strided(call.size, call.stride)).run()
    return [pruned, value.view(-1)] if spec.dense_results else [pruned]


def _fused_on_cuda(call: FusedPrune) -> list[Tensor]:
    results = call.empty_results()
    how = fused_launch_of(call, results[0])
    masks.run(how, masks.tensors(how.spec, call.inputs, results), call.seed, call.stream)
    return results


def fused_launch_of(call: FusedPrune, out: Tensor) -> masks.MaskLaunch:
    """``launch_of``, of a kernel that computes its operand."""
    spec = spec_of(call.spec)
    _, columns = launch.operand_shape(spec, call.inputs)
    x = out if not call.keep else torch.empty_like(out, dtype=getattr(torch, spec.dtype))
    return masks.computing(launch_of(call.mask(x), out), spec, columns)


def _register(cls: type[Mask]) -> None:
    name = cls.operator.name()

    def implementation(compute: Any) -> Any:
        return lambda *args: compute(cls(*args))

    LIBRARY.impl(name, implementation(_on_cpu), "CPU")
    LIBRARY.impl(name, implementation(_on_cuda), "CUDA")
    LIBRARY.impl(name, implementation(_by_reference), "CompositeExplicitAutograd")


_register(Prune)
_register(PruneInAnyLayout)
_register(KeepMask)


def _register_each() -> None:
    name = PruneEach.operator.name()

    def one_by_one(compute: Any) -> Any:
        return lambda *args: [compute(call) for call in PruneEach(*args).calls]

    LIBRARY.impl(name, lambda *args: _all_on_cpu(PruneEach(*args).calls), "CPU")
    # Where kernels are generated, the pass leaves the single calls as they are.
    LIBRARY.impl(name, one_by_one(_on_cuda), "CUDA")
    LIBRARY.impl(name, one_by_one(_by_reference), "CompositeExplicitAutograd")


_register_each()
for _device, _fused in (("CPU", _fused_on_cpu), ("CUDA", _fused_on_cuda)):
    LIBRARY.impl("fused_prune", lambda *args, run=_fused: run(FusedPrune(*args)), _device)
