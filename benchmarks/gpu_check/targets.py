"""The project's targets on an H200, and whether measured rows meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.table import Row

FLOOR = "times byte floor"
SPEEDUP = "speedup over torch.mm"
STEP, ADAMW_STEP = "step (ms)", "step with AdamW (ms)"


@dataclass(frozen=True)
class Target:
    """A bound on the rows of one place; an ``optional`` one is not missed by not being measured."""

    title: str
    mode: str
    provider: str
    metric: str
    x: str
    config: str
    bound: str
    optional: bool = False

    @property
    def place(self) -> tuple[str, str, str, str, str]:
        """What identifies a row."""
        return self.mode, self.provider, self.metric, self.x, self.config


def _compress(config: str, bound: float) -> Target:
    title = f"compress 8192x8192, {config}"
    return Target(title, "products", "nm.compress", FLOOR, "8192x8192", config, f"<={bound}")


def _product(config: str) -> Target:
    title, both = f"compress and multiply 8192^3, {config}", "nm.compress + nm.mm"
    return Target(title, "products", both, SPEEDUP, "8192x8192x8192", config, ">=1.3")


def _step(network: str, provider: str, bound: float, optional: bool = False) -> Target:
    title = f"step of {network}, {provider}, over dense"
    bounds = f"<={bound}"
    return Target(title, "training", provider, STEP, network, "default", bounds, optional)


TARGETS = (
    _compress("mse dims [1]", 1.25),
    _compress("mse dims [0]", 1.25),
    _compress("mvue dims [1]", 1.75),
    _compress("mvue dims [0]", 1.75),
    _compress("mse dims [1, 0]", 1.5),
    _compress("mvue dims [1, 0]", 2.2),
    _product("fprop mse"),
    _product("dgrad mvue"),
    _product("wgrad mvue"),
    _step("llama", "full", 1.0),
    _step("gpt2-medium", "full", 1.02),
    _step("resnet50", "full", 1.02),
    *(
        _step(network, provider, 1.02, optional=True)
        for network in ("llama", "gpt2-medium", "resnet50")
        for provider in ("gradients", "activations")
    ),
)
_BOUNDS = {target.place: target.bound for target in TARGETS}


def target_of(mode: str, provider: str, metric: str, x: str, config: str) -> str:
    """The bound of a row, as ``benchmarks.table.Row.target``; empty for most."""
    return _BOUNDS.get((mode, provider, metric, x, config), "")


def verdict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each target: its title, ``PASS``, ``FAIL`` or ``not measured``, and the figure."""
    measured = {(r.mode, r.provider, r.metric, r.x, r.config): r for r in rows if r.target}
    lines = []
    for target in TARGETS:
        row = measured.get(target.place)
        if row is None or (row.mode == "training" and row.ratio_to_inductor is None):
            if not target.optional:
                lines.append({"target": target.title, "result": "not measured", "figure": ""})
            continue
        value = row.p50 if row.ratio_to_inductor is None else row.ratio_to_inductor
        lines.append(
            {
                "target": target.title,
                "result": "FAIL" if row.missed else "PASS",
                "figure": f"{value:.3f} (must be {target.bound})",
            }
        )
    return lines
