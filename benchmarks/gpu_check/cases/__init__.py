"""The sections of the check, as cases in the order in which they run."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import torch

from benchmarks.gpu_check.events import Case


def all_cases(rehearse: bool) -> list[Case]:
    """Every case; names and order do not depend on the device."""
    from benchmarks.gpu_check.cases import (
        compiled,
        kernels,
        library,
        probe,
        products,
        sparse_mm,
        training,
    )

    modules = (probe, compiled, kernels, sparse_mm, products, library, training)
    return [case for module in modules for case in module.cases(rehearse)]


def versions() -> dict[str, Any]:
    """Of Python, torch and Triton."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    return found
