"""The oracle of a kernel spec's prologue: the same operators in plain PyTorch, in float32."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nmcompile.codegen.kernel_spec import Input, KernelSpec
from nmcompile.compressed import packing


def evaluate(spec: KernelSpec, inputs: Sequence[Tensor], rows: int, columns: int) -> list[Tensor]:
    """The operands ``[rows, columns]`` of a kernel, each rounded once to its dtype."""
    known: dict[str, Any] = {
        i.name: _broadcast(i, x, rows, columns) for i, x in zip(spec.inputs, inputs, strict=True)
    }
    for statement in spec.statements:
        arguments: list[Any] = [known[a] if isinstance(a, str) else a for a in statement.arguments]
        if statement.target == "aten.where.self":
            arguments = [arguments[0].bool(), *map(_tensor, arguments[1:])]
        known[statement.name] = _operator(statement.target)(*arguments)
    dtype = getattr(torch, spec.dtype)
    values = (known[operand.value].to(dtype) for operand in spec.operands)
    return [value.expand(rows, columns).contiguous() for value in values]


def _broadcast(given: Input, x: Tensor, rows: int, columns: int) -> Tensor:
    if given.layout is not None:
        read = packing.unpack if given.shape == "packed" else packing.unpack_mask
        x = read(x, rows, columns, given.layout)
        return x.float() if x.is_floating_point() else x
    shape = {
        "full": (rows, columns),
        "per_column": (1, columns),
        "per_row": (rows, 1),
        "scalar": (1, 1),
    }[given.shape]
    x = x.reshape(shape)
    return x.float() if x.is_floating_point() else x


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)


@functools.cache
def _operator(target: str) -> Any:
    return functools.reduce(getattr, target.split("."), torch.ops)
