"""The operators of generated kernels that compute their operand, as ``schemas`` has the others."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from nmcompile.codegen import launch
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.ops.call import Call
from nmcompile.ops.schemas import KeepMask, Mask, Prune, operator


@functools.lru_cache(maxsize=1024)
def spec_of(text: str) -> KernelSpec:
    """The spec of a ``FusedCompress`` or ``FusedPrune`` call."""
    return KernelSpec.from_json(text)


@operator(
    "fused_prune(Tensor[] inputs, Tensor? seed, int stream, int[] size, int[] stride, "
    "int n, int m, int[] dims, str method, bool keep, str spec) -> Tensor[]",
    lambda call: call.empty_results(),
)
@dataclass(frozen=True)
class FusedPrune(Call):
    """``Prune``, or ``KeepMask`` where ``keep``, of what a prologue computes.

    ``inputs`` are the tensors of the prologue, contiguous: ``[R, C]`` where they are whole, else
    flat. ``spec`` is a ``codegen.kernel_spec.KernelSpec`` as JSON, of one operand that is not
    packed, whose elements in memory are those of a tensor of this ``size`` and ``stride`` without
    gaps. The results are its mask, and the operand itself ``[R * C]`` where the spec keeps it.
    """

    inputs: Any
    seed: Any
    stream: int
    size: Any
    stride: Any
    n: int
    m: int
    dims: Any
    method: str
    keep: bool
    spec: str

    def mask(self, x: Any) -> Mask:
        """The call for the computed operand."""
        cls = KeepMask if self.keep else Prune
        return cls(x, self.seed, self.stream, self.n, self.m, self.dims, self.method)

    def empty_results(self) -> list[torch.Tensor]:
        """What a kernel writes to."""
        spec, like = spec_of(self.spec), self.inputs[0]
        dtype = getattr(torch, spec.dtype)
        kind = {"dtype": torch.bool if self.keep else dtype, "device": like.device}
        found = [torch.empty_strided(self.size, self.stride, **kind)]
        if spec.dense_results:
            found.append(torch.empty(math.prod(self.size), dtype=dtype, device=like.device))
        return found


def _fake_fused_compress(call: FusedCompress) -> list[torch.Tensor]:
    spec = spec_of(call.spec)
    shapes = launch.result_shapes(spec, *launch.operand_shape(spec, call.inputs))
    return [call.inputs[0].new_empty(s, dtype=getattr(torch, spec.dtype)) for s in shapes]


@operator(
    "fused_compress(Tensor[] inputs, Tensor? seed, int[] streams, str spec) -> Tensor[]",
    _fake_fused_compress,
)
@dataclass(frozen=True)
class FusedCompress(Call):
    """Packed operands of what a prologue computes, then that itself where the spec keeps it.

    ``inputs`` are the tensors of the prologue: 2-D where they are whole operands, else flat.
    ``spec`` is a ``codegen.kernel_spec.KernelSpec`` as JSON.
    """

    inputs: Any
    seed: Any
    streams: Any
    spec: str
