"""The project's targets on a GPU, and whether measured rows meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.table import Row

FLOOR = "times byte floor"
SPEEDUP = "speedup over torch.mm"
GAIN = "gain"
STEP, ADAMW_STEP = "step (ms)", "step with AdamW (ms)"
SPARSE, PRODUCTS = "products that ran sparse", "products"
#: Dense over sparse time of the unit that came nearest to a gain, where none of them gains.
DECLINED = "best predicted, all declined"


@dataclass(frozen=True)
class Target:
    """A bound on the rows of one place; an ``optional`` one is not missed by not being measured.

    ``sparse``: the same place has rows of how many products ran sparse, and none is no pass: a
    network that is dense by decision is no success of sparsity, and one that is dense for any other
    reason is a failure.
    """

    title: str
    mode: str
    provider: str
    metric: str
    x: str
    config: str
    bound: str
    optional: bool = False
    sparse: bool = False

    @property
    def place(self) -> tuple[str, str, str, str, str]:
        """What identifies a row."""
        return self.mode, self.provider, self.metric, self.x, self.config


def _gain(shape: str, role: str) -> Target:
    title, config = f"sparse over dense, {shape} {role}", f"{role}, own, normal"
    return Target(title, "gain", "_cslt_sparse_mm", GAIN, shape, config, ">=1.3")


def _compress(config: str, bound: float) -> Target:
    title = f"compress 8192x8192, {config}"
    return Target(title, "compress", "nm.compress", FLOOR, "8192x8192", config, f"<={bound}")


def _product(config: str) -> Target:
    title, both = f"compress and multiply 8192^3, {config}", "nm.compress + nm.mm"
    x = "8192x8192x8192"
    return Target(title, "products", both, SPEEDUP, x, config, ">=1.3", optional=True)


def _step(
    section: str, network: str, provider: str, bound: float, optional: bool = False
) -> Target:
    title, sparse = f"step of {network}, {provider}, over dense", "simulated" not in provider
    place = (section, provider, STEP, network, "default")
    return Target(title, *place, f"<={bound}", optional, sparse)


TARGETS = (
    *(_gain("16384x4096x14336", role) for role in ("fprop", "dgrad", "wgrad")),
    _step("llama", "llama", "full", 0.833),
    _step("llama", "llama", "full, simulated", 1.15),
    _step("large", "llama-70b", "full", 0.769),
    _step("gpt2", "gpt2-medium", "full", 1.02),
    _step("resnet", "resnet50", "full", 1.02),
    _compress("mse dims [1]", 1.25),
    _compress("mse dims [0]", 1.25),
    _compress("mvue dims [1]", 1.75),
    _compress("mvue dims [0]", 1.75),
    _compress("mse dims [1, 0]", 1.5),
    _compress("mvue dims [1, 0]", 2.2),
    *(_product(config) for config in ("fprop mse", "dgrad mvue", "wgrad mvue")),
    *(
        _step("recipes", network, provider, 1.02, optional=True)
        for network in ("llama", "gpt2-medium", "resnet50")
        for provider in ("gradients", "activations")
    ),
)
_BOUNDS = {target.place: target.bound for target in TARGETS}


def target_of(mode: str, provider: str, metric: str, x: str, config: str) -> str:
    """The bound of a row, as ``benchmarks.table.Row.target``; empty for most."""
    return _BOUNDS.get((mode, provider, metric, x, config), "")


def verdict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each target: its title, the result and the figure.

    The result is ``PASS``, ``FAIL``, ``not measured`` or ``DENSE``: within the bound, with no
    product sparse since none was predicted to gain.
    """
    measured = {(r.mode, r.provider, r.metric, r.x, r.config): r for r in rows}
    lines = []
    for target in TARGETS:
        row = measured.get(target.place)
        if row is None or not row.target or (row.metric == STEP and not row.ratio_to_inductor):
            if not target.optional:
                lines.append({"target": target.title, "result": "not measured", "figure": ""})
            continue
        value = row.p50 if row.ratio_to_inductor is None else row.ratio_to_inductor
        figure, result = f"{value:.3f} (must be {target.bound})", "FAIL" if row.missed else "PASS"
        if target.sparse:
            section, provider, _, *place = target.place
            counts = SPARSE, PRODUCTS, DECLINED
            ran, of, best = (measured.get((section, provider, m, *place)) for m in counts)
            figure += f", {ran.p50 if ran else 0:.0f} of {of.p50 if of else 0:.0f} products sparse"
            if ran is None or ran.p50 == 0:
                by_decision = ran is not None and best is not None and not row.missed
                result = "DENSE" if by_decision else "FAIL"
                figure += f": dense by decision, at best {best.p50:.2f}x predicted" if best else ""
        lines.append({"target": target.title, "result": result, "figure": figure})
    return lines
