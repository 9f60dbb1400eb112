"""The plot of what pruning does to gradients, beside what becomes of the training."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.accuracy.drawing import STYLE, figure_of, legend, plain, png_of
from benchmarks.accuracy.results import Row, arms_of
from benchmarks.accuracy.studies import Study
from benchmarks.accuracy.summary import BASE


def draw(study: Study, curves: Sequence[Row], signals: Sequence[Row]) -> bytes:
    """A PNG with two rows per network: over training, and by layer."""
    networks = arms_of(signals)
    figure, axes = figure_of(2 * len(networks), 3, figsize=(13, 1 + 6.4 * len(networks)))
    for number, (network, arms) in enumerate(networks.items()):
        above, below = axes[2 * number : 2 * number + 2]
        own = [row for row in curves if row["network"] == network]
        every = [r for r in signals if r["network"] == network]
        whole = [r for r in every if r["layer"] == "all"]
        for arm in [BASE, *arms]:
            _over(above[0], own, arm, "step", study.metric.shown)
            _over(above[1], own, arm, "step", lambda r: r["logit_mean"])
        for arm in arms:
            _over(above[2], whole, arm, "step", lambda r: r["cosine_mean"])
            _over(above[2], whole, arm, "step", lambda r: r["cosine_batch"], alpha=0.35)
            _over(below[0], whole, arm, "step", lambda r: r["bias"])
            _over(below[1], whole, arm, "step", lambda r: r["noise"])
            _over(below[2], [r for r in every if r["layer"] != "all"], arm, "layer",
                  lambda r: r["bias"], marker="o", markersize=3)  # fmt: skip
        above[0].set(title=f"{network}: {study.metric.label}", xlabel="step")
        above[1].set(title="mean of all logits", xlabel="step")
        above[1].set_yscale("symlog", linthresh=1)
        above[2].set(title="cosine to dense, 16 batches (pale: one)", xlabel="step")
        below[0].set(title="bias over norm of the gradient", xlabel="step")
        below[1].set(title="added variance over mini-batch variance", xlabel="step")
        below[1].set_yscale("log")
        below[1].set_ylim(bottom=1e-3)  # below it is rounding, while a schedule is dense
        below[2].set(title="bias over norm, by layer")
        below[2].tick_params(axis="x", rotation=60)
        for axis in (below[0], below[2]):
            axis.set_yscale("symlog", linthresh=0.1)
            axis.yaxis.set_major_formatter("{x:g}")
        for axis in (*above, *below):
            plain(axis)
    legend(figure, list(dict.fromkeys([BASE, *(row["arm"] for row in signals)])))
    return png_of(figure)


def _over(
    axis: Any,
    rows: Sequence[Row],
    arm: str,
    x: str,
    y: Callable[[Row], float | None],
    **options: Any,
) -> None:
    """An arm's line: the mean over all rows of one ``x``, of those that have a ``y``."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        if row["arm"] == arm and (value := y(row)) is not None:
            found.setdefault(row[x], []).append(value)
    axis.plot(list(found), list(map(statistics.fmean, found.values())), **STYLE[arm], **options)
