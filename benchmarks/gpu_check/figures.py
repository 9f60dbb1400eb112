"""What was measured, as a file of targets: ``NMCOMPILE_TARGETS`` lets the cost model take it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tomli_w

from benchmarks.table import Row
from nmcompile.compressed import plans
from nmcompile.execution.targets import targets

_LARGE = "8192x8192x8192"


def gains(found: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What the cases of section ``gain`` noted: sparse over dense by shape, role and algorithm."""
    noted = (case["notes"].get("gains", []) for section, _, case in found if section == "gain")
    return [line for lines in noted for line in lines]


def targets_toml(gpu: str, commit: str, stand_in: bool, rows: Sequence[Row], lines: Any) -> str:
    """A file for ``nmcompile.execution.targets``; empty for a GPU that it has no target of.

    The gains are those of the algorithms that the package chose, on normal data; a stand-in's
    figures (``stand_in``) are never called measured.
    """
    name = next((t.name for t in targets().values() if any(w in gpu for w in t.words)), None)
    if name is None:
        return ""
    known = "assumed" if stand_in else "measured"
    origin = {"known": known, "source": f"gpu_check of {commit or 'an unknown commit'} on {gpu}"}
    figures: dict[str, Any] = {}
    call = "kept plan" if plans.asked() and not stand_in else "_cslt_sparse_mm"
    for row in rows:
        if (row.provider, row.metric) == ("copy", "bandwidth (TB/s)"):
            figures["bandwidth"] = {"value": row.p50 * 1e12, **origin}
        place = row.mode, row.provider, row.x, row.config
        if place == ("gain", "torch.mm", _LARGE, "fprop, own, normal"):
            figures["dense"] = {"value": 2.0 * 8192**3 / (row.p50 * 1e-6), **origin}
        if (row.provider, row.metric) == (call, "host time (us)"):
            figures["setup"] = {"value": row.p50 * 1e-6, **origin}
    found = [
        {"rows": g["m"], "columns": g["n"], "k": g["k"], "gain": g["gain"], **origin}
        for g in lines
        if g["own"] and g["data"] == "normal"
    ]
    return tomli_w.dumps({"schema": 1, name: {"figures": figures, "gains": found}})
