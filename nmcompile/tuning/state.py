"""Leave a model as it was found, and tell one model and one batch from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nmcompile._torch import FakeTensor, tree_leaves


@contextmanager
def untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back buffers, modes and the random state; parameters and gradients are never written."""
    inside = [m for module in modules for m in module.modules()]
    held = [(m._buffers, name, b) for m in inside for name, b in m._buffers.items()]
    values = [(b, b.detach().clone()) for _, _, b in held if b is not None]
    modes = [(m, m.training) for m in inside]
    try:
        with torch.random.fork_rng(devices=_gpus()):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        for table, name, before in held:
            table[name] = before
        for m, training in modes:
            m.training = training


def draw_from(number: int) -> None:
    """Let random numbers start here; on GPUs that are in use as well, and on no others."""
    torch.default_generator.manual_seed(number)
    if _gpus():
        torch.cuda.manual_seed_all(number)


def _gpus() -> list[int]:
    """A process that has not used them has no state there to keep."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def has_values(modules: Iterable[nn.Module]) -> bool:
    """Whether every tensor of the modules holds numbers: not on the meta device, not fake."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return not any(t.is_meta or isinstance(t, FakeTensor) for t in tensors)


def digest_of(values: Any) -> str:
    """SHA-256 of all tensors and plain values in any nesting."""
    digest = hashlib.sha256()
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            flat = leaf.detach().to("cpu").contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
