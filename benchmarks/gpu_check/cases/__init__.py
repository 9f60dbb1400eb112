"""The sections of the check, as cases in the order in which they run."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.gpu_check.device import guarded
from benchmarks.gpu_check.events import Case, Session

#: The modules that hold a section's cases, in order; what decides most comes first.
MODULES: dict[str, tuple[str, ...]] = {
    "gain": ("gain",),
    "llama": ("training",),
    "large": ("training",),
    "compress": ("products",),
    "host": ("library",),
    "graphs": ("compiled", "library", "training"),
    "gpt2": ("training",),
    "probe": ("probe",),
    "kernels": ("sparse_mm", "compiled", "kernels"),
    "resnet": ("training",),
    "products": ("products", "library"),
    "recipes": ("training",),
    "tiles": ("tiles",),
    "accuracy": ("accuracy",),
}


def all_cases(rehearse: bool, sections: Iterable[str] = tuple(MODULES)) -> list[Case]:
    """Every case of the sections; names and order do not depend on the device.

    A section's modules are imported for it alone: ``kernels`` collects tests with pytest.
    """
    wanted = set(sections)
    found = []
    for section, names in MODULES.items():
        for name in names if section in wanted else ():
            if name == "kernels" and importlib.util.find_spec("pytest") is None:
                found.append(Case("kernels", "suite", _without_pytest))
                continue
            module = importlib.import_module(f"benchmarks.gpu_check.cases.{name}")
            found += [case for case in module.cases(rehearse) if case.section == section]
    return found


def _without_pytest(session: Session) -> None:
    session.check("the suite runs", False, "pytest is not importable: carry its wheel")


def versions() -> dict[str, Any]:
    """Of Python, torch and Triton."""
    found = {"python": platform.python_version, "torch": lambda: torch.__version__}
    if importlib.util.find_spec("triton"):
        found["triton"] = lambda: importlib.import_module("triton").__version__
    return guarded(found)
