"""What a device can do: the layout that its sparse tensor cores read, and its ceilings.

The figures of ``_CEILINGS`` decide between a sparse and a dense product where nothing was measured
(``options={"nm.autotune": True}`` measures instead). ``measured`` says which of them were.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass

import torch

from nmcompile.compressed.layouts import Layout


@dataclass(frozen=True)
class Ceilings:
    """Rates that well-written kernels reach on one device.

    ``bandwidth`` in bytes per second (reads plus writes of a copy), ``dense`` in FLOPs per second
    of a large 16-bit product, ``sparse_gain`` how much faster the library's 2:4 product of the
    same size is, ``launch`` and ``setup`` the seconds that a kernel launch and one call of the
    sparse library take.
    """

    bandwidth: float
    dense: float
    sparse_gain: float
    launch: float
    setup: float
    measured: str


@dataclass(frozen=True)
class Target:
    """How sparse products run on a device: ``layout`` None means that they do not, ``reason`` why.

    ``ceilings`` is None where nothing can be predicted: on a CPU, whose operators decode the
    compressed operand and multiply densely, and on a GPU without figures.
    """

    layout: Layout | None
    reason: str = ""
    ceilings: Ceilings | None = None


#: By a word of the device's name. The copy and the dense product of the H200 were measured; the
#: others are 0.9 of a datasheet's bandwidth and 0.7 of its dense rate. The gain of the sparse
#: product is an assumption everywhere: the datasheets' 2.0 is not reached by any library.
_CEILINGS = {
    "H200": Ceilings(4.3e12, 788e12, 1.5, 3e-6, 30e-6, "copy and dense product"),
    "H100": Ceilings(3.0e12, 690e12, 1.5, 3e-6, 30e-6, "nothing"),
    "A100": Ceilings(1.8e12, 218e12, 1.5, 3e-6, 30e-6, "nothing"),
}


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def target_of(device: str) -> Target:
    """The target of ``"cpu"``, ``"cuda:0"``, ...; never raises."""
    kind = torch.device(device)
    if kind.type == "cpu":
        return Target(Layout.CUSPARSELT_SM90)
    if kind.type != "cuda" or torch.version.hip:
        return Target(None, f"no sparse tensor core product on {kind.type}")
    if not torch.cuda.is_available():
        return Target(None, "no CUDA device is visible")
    capability = torch.cuda.get_device_capability(kind)
    name = torch.cuda.get_device_name(kind)
    library = _cusparselt_version()
    figures = next((c for word, c in _CEILINGS.items() if word in name), None)
    return _cuda_target(name, capability, library, figures)


def fingerprint() -> str:
    """What decisions depend on beside the graph and the policy: the GPU and its sparse library."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"{torch.cuda.get_device_name()} cusparselt {_cusparselt_version()} {has_triton()}"


def _cuda_target(
    name: str, capability: tuple[int, int], library: int | None, ceilings: Ceilings | None
) -> Target:
    version = ".".join(map(str, capability))
    if not has_triton():
        return Target(None, "Triton is not installed: no kernel can compress the operands")
    if capability < (8, 0):
        return Target(None, f"{name} (compute capability {version}) has no sparse tensor cores")
    if library is None:
        if capability[0] == 8:
            return Target(Layout.CUTLASS_SM80, ceilings=ceilings)
        return Target(None, f"this torch has no cuSPARSELt, which {name} needs")
    if capability == (9, 0):
        return Target(Layout.CUSPARSELT_SM90, ceilings=ceilings)
    if capability[0] == 8:
        return Target(Layout.CUSPARSELT_SM80, ceilings=ceilings)
    return Target(None, f"{name} (compute capability {version}): its compressed layout is unknown")


def _cusparselt_version() -> int | None:
    backend = torch.backends.cusparselt
    return backend.version() if backend.is_available() else None
