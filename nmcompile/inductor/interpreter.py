"""Run a rewritten graph without its masks: planning must not build kernels to trace on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from nmcompile.ops.schemas import (
    Compress,
    CompressLike,
    Decompress,
    KeepMask,
    KeepMaskRagged,
    Mm,
    Pack,
    Prune,
    PruneRagged,
    UnpackMask,
)


class PlannedInterpreter(fx.Interpreter):
    """Interprets a graph that Inductor would generate code for."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten.view.default:
            # As Inductor: a fused attention has other strides than the products it stands for.
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What the graph holds; a graph that an operator will call is interpreted as well."""
        held = super().get_attr(target, args, kwargs)
        return _Called(held, type(self)) if isinstance(held, fx.GraphModule) else held


class _Called(torch.nn.Module):
    """A graph as a function that interprets it."""

    def __init__(self, gm: fx.GraphModule, interpreter: type[fx.Interpreter]) -> None:
        super().__init__()
        self.gm = gm
        self.interpreter = interpreter

    def forward(self, *args: Any) -> Any:
        return self.interpreter(self.gm).run(*args)


class DenseInterpreter(PlannedInterpreter):
    """Interprets a graph as if its policy were dense; what is packed there is dense here."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _DENSE:
            call, dense = _DENSE[target]
            return dense(call(*args, **kwargs))
        return super().call_function(target, args, kwargs)


def _compress(call: Compress) -> list[Tensor]:
    return [call.x if dim == 1 else call.x.t() for dim in call.dims]


def _mm(call: Mm) -> Tensor:
    result: Tensor = call.packed @ call.dense
    if call.bias is not None:
        result = result + call.bias[:, None]
    return (result.t() if call.transpose_result else result).contiguous()


def _all_kept(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool).contiguous()


def _table(*rows: tuple[Any, Callable[[Any], Any]]) -> dict[Any, Any]:
    return {call.operator: (call, dense) for call, dense in rows}


#: What each operator computes where nothing is masked and a packed operand is the dense one.
_DENSE = _table(
    (Prune, lambda call: call.x),
    (KeepMask, lambda call: _all_kept(call.x)),
    (PruneRagged, lambda call: call.x),
    (KeepMaskRagged, lambda call: _all_kept(call.x)),
    (Compress, _compress),
    (Decompress, lambda call: call.packed.contiguous()),
    (UnpackMask, lambda call: _all_kept(call.packed)),
    (CompressLike, lambda call: call.x),
    (Pack, lambda call: call.x.contiguous()),
    (Mm, _mm),
)
