"""Models on the meta device, looked at as fake ones on the CPU.

PyTorch decomposes operators differently on meta (attention falls apart into products that no GPU
runs), and has no gradient of some (the loss of a classifier). A fake tensor takes no memory either
and has a device, whose operators it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from nmcompile._torch import FakeTensor, FakeTensorMode, tree_leaves, tree_map


@contextmanager
def off_meta(model: Any, inputs: Any) -> Iterator[Any]:
    """The inputs of a model, with all tensors of both fake where one is on the meta device.

    The model has its own tensors again at the end.

    Args:
        model: a module; anything else has no tensors of its own.
        inputs: any nesting of them.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    places: list[tuple[dict[str, Any], str, torch.Tensor]] = [
        (table, name, value)
        for module in modules
        for table in _tables(module)
        for name, value in table.items()
        if isinstance(value, torch.Tensor)
    ]
    if not any(map(_on_meta, [*(value for *_, value in places), *tree_leaves(inputs)])):
        yield inputs
        return
    fakes = _Fakes()
    for table, name, value in places:
        table[name] = fakes.of(value)
    on_meta = torch.get_default_device().type == "meta"
    try:
        with fakes.mode, torch.device("cpu") if on_meta else nullcontext():
            yield tree_map(fakes.of, inputs)
    finally:
        for table, name, value in places:
            table[name] = value


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module has its tensors: parameters, buffers, and those that are plain attributes."""
    parameters: Any = module._parameters
    buffers: Any = module._buffers
    return parameters, buffers, vars(module)


def _on_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and not isinstance(value, FakeTensor)


class _Fakes:
    """One fake tensor for each tensor: what was shared stays shared."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._made: dict[int, torch.Tensor] = {}

    def of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        if id(value) not in self._made:
            self._made[id(value)] = self._make(value)
        return self._made[id(value)]

    def _make(self, value: torch.Tensor) -> torch.Tensor:
        device = "cpu" if value.is_meta else value.device
        with self.mode:
            made = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=device
            )
            if isinstance(value, nn.Parameter):
                return nn.Parameter(made, value.requires_grad)
            return made.requires_grad_(value.requires_grad)
