"""Run a model for the sake of compiling it, and leave no trace in what it learns."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nmcompile import _torch
from nmcompile.errors import ScheduleError
from nmcompile.ops.observe import no_samples
from nmcompile.weight_masks.table import undisturbed


def run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """One forward and, where gradients are on, the backward of all that it returned."""
    args, kwargs = _torch.tree_map_only(torch.Tensor, _on_its_own, (tuple(args), dict(kwargs)))
    found = [t for t in _tensors(model(*args, **kwargs)) if t.requires_grad]
    if found:
        torch.autograd.backward(found, [torch.ones_like(t) for t in found])


def _on_its_own(x: torch.Tensor) -> torch.Tensor:
    """The same values, from which no backward leads into the caller's graph."""
    return x.detach().requires_grad_() if x.requires_grad else x


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of what a model returned, in objects of its own classes too."""
    for leaf in _torch.tree_leaves(output):
        found = [leaf] if isinstance(leaf, torch.Tensor) else getattr(leaf, "__dict__", {}).values()
        yield from (value for value in found if isinstance(value, torch.Tensor))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave parameters, their gradients and masks, buffers and random numbers as they are.

    Hooks that wait for a gradient (``register_post_accumulate_grad_hook``) are not called: they
    may hold an optimizer's step.

    Raises:
        ScheduleError: the model itself has changed a parameter.
    """
    parameters = list(model.named_parameters())
    gradients = [p.grad for _, p in parameters]
    versions = [_version(p) for _, p in parameters]
    buffers = list(_buffers(model))
    kept = [None if b is None else b.detach().clone() for _, _, b in buffers]
    state = random.getstate()
    try:
        with (
            torch.random.fork_rng(**_generators(p for _, p in parameters)),
            _torch.without_gradient_hooks(p for _, p in parameters),
            undisturbed(p for _, p in parameters),
            no_samples(),
        ):
            for _, p in parameters:
                p.grad = None
            yield
    finally:
        random.setstate(state)
        for (_, p), grad in zip(parameters, gradients, strict=True):
            p.grad = grad
        with torch.no_grad():
            for (module, name, buffer), copy in zip(buffers, kept, strict=True):
                if buffer is not None and copy is not None:
                    buffer.copy_(copy)
                module._buffers[name] = buffer
    for (name, p), version in zip(parameters, versions, strict=True):
        if _version(p) != version:
            raise ScheduleError(
                f"parameter {name} was changed while the model was warmed up, by its forward or "
                "a hook, and cannot be put back: load its weights again, and leave out warm_up()"
            )


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor | None]]:
    for module in model.modules():
        yield from ((module, name, buffer) for name, buffer in module._buffers.items())


def _version(p: torch.Tensor) -> int:
    return 0 if p.is_inference() else p._version


def _generators(parameters: Iterable[torch.Tensor]) -> dict[str, Any]:
    """Which devices' random numbers to keep beside the CPU's."""
    found = sorted({p.device for p in parameters if p.device.type not in ("cpu", "meta")}, key=str)
    if not found:
        return {"devices": []}
    kind = found[0].type
    indices = {d.index for d in found if d.type == kind and d.index is not None}
    return {"devices": sorted(indices | {torch.get_device_module(kind).current_device()}),
            "device_type": kind}  # fmt: skip
