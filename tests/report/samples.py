"""Rows and graphs of a report, made by hand."""

from __future__ import annotations

from typing import Any

from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.graph.find_skipped import Skipped
from nmcompile.reason import Code, Reason
from nmcompile.report.report import GraphReport
from nmcompile.report.rows import Site

NO_RULE = Reason(Code.NO_RULE, "no rule matches")

#: What a ``site`` has that a rule of a file prunes, but for its ``execution``.
PRUNED: dict[str, Any] = {
    "pruned": OperandKind.ACTIVATION,
    "format": "2:4",
    "method": "mse",
    "rule": "policy.toml:12 (rule 2)",
    "reasons": (),
}


def site(module: str = "fc", **changes: Any) -> Site:
    """A dense fprop product of a linear layer."""
    keys: dict[str, Any] = {
        "site": 0,
        "module": module,
        "module_class": "Linear",
        "op": Op.LINEAR,
        "target": "aten.mm",
        "role": Role.FPROP,
        "sizes": ("1", "4", "8", "16"),
        "flops": 1024.0,
        "dtype": "float32",
        "device": "cpu",
        "operands": (OperandKind.ACTIVATION, OperandKind.WEIGHT),
        "execution": "dense",
        "reasons": (NO_RULE,),
    }
    nothing = dict.fromkeys(Site.model_fields)
    return Site(**{**nothing, **keys, **changes})


def skipped(path: str = "attention", target: str = "aten.flash") -> Skipped:
    """Something fused."""
    return Skipped(target, path, "", False, Reason(Code.FUSED_ATTENTION, "fused"))


def graph(*sites: Site, **changes: Any) -> GraphReport:
    """An inference graph with these products."""
    keys: dict[str, Any] = {"digest": "", "training": False, "skipped": (), "before": "a"}
    return GraphReport(**{**keys, "sites": sites, "after": "b", **changes})
