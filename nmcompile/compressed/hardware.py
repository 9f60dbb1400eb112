"""What this machine's devices and libraries are, and the layout that sparse tensor cores read."""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import torch

from nmcompile.compressed.layouts import Layout

#: By the first number of the compute capability, where only the library knows the layout.
_OPAQUE = (10, 12)


class Reads(NamedTuple):
    """The layout that a device's library reads; None where nothing does, and ``reason`` why."""

    layout: Layout | None
    reason: str = ""


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def cusparselt_version() -> int | None:
    """Of the cuSPARSELt that this torch brings; None where it brings none."""
    backend = torch.backends.cusparselt
    return backend.version() if backend.is_available() else None


@functools.cache
def layout_on(device: str) -> Reads:
    """The layout of ``"cpu"``, ``"cuda:0"``, ... on this machine; never raises."""
    kind = torch.device(device)
    if kind.type == "cpu":
        return Reads(Layout.CUSPARSELT_SM90)
    if kind.type != "cuda" or torch.version.hip:
        return Reads(None, f"no sparse tensor core product on {kind.type}")
    if not torch.cuda.is_available():
        return Reads(None, "no CUDA device is visible")
    if not has_triton():
        return Reads(None, "Triton is not installed: no kernel can compress the operands")
    name, capability = torch.cuda.get_device_name(kind), torch.cuda.get_device_capability(kind)
    return layout_of(name, capability, cusparselt_version())


def layout_of(name: str, capability: tuple[int, int], library: int | None) -> Reads:
    """The layout of a GPU by its compute capability; ``library`` is the version of cuSPARSELt."""
    version = ".".join(map(str, capability))
    if capability < (8, 0):
        return Reads(None, f"{name} (compute capability {version}) has no sparse tensor cores")
    if library is None:
        if capability[0] == 8:
            return Reads(Layout.CUTLASS_SM80)
        return Reads(None, f"this torch has no cuSPARSELt, which {name} needs")
    if capability == (9, 0):
        return Reads(Layout.CUSPARSELT_SM90)
    if capability == (8, 9) or capability[0] in _OPAQUE:
        return Reads(Layout.CUSPARSELT)
    if capability[0] == 8:
        return Reads(Layout.CUSPARSELT_SM80)
    return Reads(None, f"{name} (compute capability {version}): its compressed layout is unknown")
