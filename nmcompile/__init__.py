"""N:M sparse training inside torch.compile: ``torch.compile(model, backend="nm_sparse")``.

Every public name is imported when it is first used: the package itself costs nothing to import,
and a policy is read without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nmcompile import functional
    from nmcompile.backend import last_report, nm_sparse
    from nmcompile.checkpoints.export import export
    from nmcompile.diagnostics.telemetry import Meter, telemetry
    from nmcompile.dry_run import explain
    from nmcompile.errors import (
        ArgumentError,
        ExportError,
        FormatError,
        MaskError,
        NMError,
        NMWarning,
        OptionError,
        PolicyError,
        ScheduleError,
    )
    from nmcompile.execution.targets import targets
    from nmcompile.in_place import compile
    from nmcompile.masks.formats import NMFormat
    from nmcompile.policy import Policy, Rule, recipe_names
    from nmcompile.report.report import Report
    from nmcompile.schedule.schedule import Schedule
    from nmcompile.traced_graph import rewrite
    from nmcompile.tuning.result import Tuned
    from nmcompile.tuning.tune import tune
    from nmcompile.weight_masks.masks import Masks

__all__ = [
    "ArgumentError",
    "ExportError",
    "FormatError",
    "MaskError",
    "Masks",
    "Meter",
    "NMError",
    "NMFormat",
    "NMWarning",
    "OptionError",
    "Policy",
    "PolicyError",
    "Report",
    "Rule",
    "Schedule",
    "ScheduleError",
    "Tuned",
    "compile",
    "explain",
    "export",
    "functional",
    "last_report",
    "nm_sparse",
    "recipe_names",
    "rewrite",
    "targets",
    "telemetry",
    "tune",
]

#: Where the public names live, but for modules.
_HOMES = {
    "ArgumentError": "errors",
    "ExportError": "errors",
    "FormatError": "errors",
    "MaskError": "errors",
    "Masks": "weight_masks.masks",
    "Meter": "diagnostics.telemetry",
    "NMError": "errors",
    "NMFormat": "masks.formats",
    "NMWarning": "errors",
    "OptionError": "errors",
    "Policy": "policy",
    "PolicyError": "errors",
    "Report": "report.report",
    "Rule": "policy",
    "Schedule": "schedule.schedule",
    "ScheduleError": "errors",
    "Tuned": "tuning.result",
    "compile": "in_place",
    "explain": "dry_run",
    "export": "checkpoints.export",
    "last_report": "backend",
    "nm_sparse": "backend",
    "recipe_names": "policy",
    "rewrite": "traced_graph",
    "targets": "execution.targets",
    "telemetry": "diagnostics.telemetry",
    "tune": "tuning.tune",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> object:
        """A public name, or a module of the package, on first use (PEP 562)."""
        from importlib import import_module, util

        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        if not name.startswith("_") and util.find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
