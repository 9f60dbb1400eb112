"""Run a rewritten graph without its masks: planning must not build kernels to trace on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

import nmcompile.ops.compress
import nmcompile.ops.masks
import nmcompile.ops.unpack  # noqa: F401  (registers torch.ops.nm)

nm = torch.ops.nm


class PlannedInterpreter(fx.Interpreter):
    """Interprets a graph that Inductor would generate code for."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten.view.default:
            # As Inductor: a fused attention has other strides than the products it stands for.
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)


class DenseInterpreter(PlannedInterpreter):
    """Interprets a graph as if its policy were dense; what is packed there is dense here."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _DENSE:
            return _DENSE[target](*args)
        return super().call_function(target, args, kwargs)


def _compress(x: Tensor, seed: Any, streams: list[int], dims: list[int], *_: Any) -> list[Tensor]:
    return [x if dim == 1 else x.t() for dim in dims]


def _mm(
    a: Tensor,
    dense: Tensor,
    rows: int,
    layout: str,
    bias: Tensor | None,
    transpose_result: bool,
    column_major: bool,
) -> Tensor:
    result = a @ dense if bias is None else a @ dense + bias[:, None]
    return (result.t() if transpose_result else result).contiguous()


def _all_kept(x: Tensor, *_: Any) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool).contiguous()


_DENSE: dict[Any, Any] = {
    nm.prune.default: lambda x, *_: x,
    nm.keep_mask.default: _all_kept,
    nm.compress.default: _compress,
    nm.decompress.default: lambda x, *_: x.contiguous(),
    nm.unpack_mask.default: _all_kept,
    nm.compress_like.default: lambda x, *_: x,
    nm.mm.default: _mm,
}
