"""N:M sparse training inside torch.compile: ``torch.compile(model, backend="nm_sparse")``."""

from __future__ import annotations

from nmcompile import functional
from nmcompile.backend import last_report, nm_sparse
from nmcompile.errors import FormatError, NMError, NMWarning, OptionError, PolicyError
from nmcompile.explain import explain
from nmcompile.in_place import compile
from nmcompile.masks.formats import NMFormat
from nmcompile.policy import Policy, Rule, recipe_names
from nmcompile.report.report import Report
from nmcompile.rewrite import rewrite

__all__ = [
    "FormatError",
    "NMError",
    "NMFormat",
    "NMWarning",
    "OptionError",
    "Policy",
    "PolicyError",
    "Report",
    "Rule",
    "compile",
    "explain",
    "functional",
    "last_report",
    "nm_sparse",
    "recipe_names",
    "rewrite",
]
