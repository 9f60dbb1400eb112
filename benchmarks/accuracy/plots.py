"""The plot of a study: loss curves, and the validation metric of every run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.accuracy.drawing import STYLE, figure_of, legend, plain, png_of
from benchmarks.accuracy.results import Row, arms_of
from benchmarks.accuracy.studies import Study


def draw(study: Study, rows: Sequence[Row], curves: Sequence[Row]) -> bytes:
    """A PNG with a row per network. The band of a curve is the range over seeds."""
    networks = arms_of(rows)
    figure, axes = figure_of(
        len(networks), 2, figsize=(11, 1.6 + 3.2 * len(networks)), width_ratios=(1, 1.25)
    )
    for (network, arms), (left, right) in zip(networks.items(), axes, strict=True):
        own = [r for r in rows if r["network"] == network]
        lines = [r for r in curves if r["network"] == network]
        shown = [arm for arm in arms if arm not in _far(study, own, arms)]
        _curves(left, lines, arms, shown)
        left.set(xlabel="step", ylabel="training loss (nats)", title=network)
        _points(right, study, own, arms, shown)
        right.set_title(f"{network}: validation, a point per seed")
    legend(figure, list(dict.fromkeys(row["arm"] for row in rows)))
    return png_of(figure)


def _far(study: Study, rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """Arms so far from dense that the axes would show nothing else."""
    metric = study.metric.column
    means = [statistics.fmean(r[metric] for r in rows if r["arm"] == arm) for arm in arms]
    distances = [abs(mean - means[0]) for mean in means]
    limit = 6 * statistics.median(d for d in distances if math.isfinite(d))
    far = [not math.isfinite(d) or d > limit > 0 for d in distances]
    return [arm for arm, is_far in zip(arms, far, strict=True) if is_far]


def _curves(axis: Any, rows: Sequence[Row], arms: Sequence[str], shown: Sequence[str]) -> None:
    for arm in arms:
        losses: dict[float, list[float]] = {}
        for row in rows:
            if row["arm"] == arm:
                losses.setdefault(row["step"], []).append(row["train_loss"])
        steps, values = list(losses), list(losses.values())
        width, above = (2.4, 3) if arm == "dense" else (1.4, 2)
        mean = [statistics.fmean(v) for v in values]
        axis.plot(steps, mean, linewidth=width, zorder=above, **STYLE[arm])
        low, high = list(map(min, values)), list(map(max, values))
        axis.fill_between(steps, low, high, color=STYLE[arm]["color"], alpha=0.12, linewidth=0)
    visible = [row["train_loss"] for row in rows if row["arm"] in shown]
    low, high = min(visible), max(visible)
    if high / low > 20:
        axis.set_yscale("log")
        axis.set_ylim(low / 1.3, high * 1.3)
    else:
        margin = 0.06 * (high - low) or 0.01
        axis.set_ylim(low - margin, high + margin)
    plain(axis)


def _points(
    axis: Any, study: Study, rows: Sequence[Row], arms: Sequence[str], shown: Sequence[str]
) -> None:
    metric = study.metric
    values = {
        arm: [metric.scale * r[metric.column] for r in rows if r["arm"] == arm] for arm in arms
    }
    visible = [value for arm in shown for value in values[arm]]
    margin = 0.08 * (max(visible) - min(visible)) or 0.01
    low, high = min(visible) - margin, max(visible) + margin
    axis.axhline(statistics.fmean(values[arms[0]]), color="0.6", linewidth=0.8, linestyle=":")
    for place, arm in enumerate(arms):
        mean, colour = statistics.fmean(values[arm]), STYLE[arm]["color"]
        if arm not in shown:  # an arrow, and where it points to
            edge, inside = (high, high - 3 * margin) if mean > high else (low, low + 3 * margin)
            axis.annotate(
                f"{mean:.1f}", (place, edge), (place, inside), color=colour, ha="center",
                va="center", fontsize=7, arrowprops={"arrowstyle": "->", "color": colour},
            )  # fmt: skip
            continue
        axis.plot([place - 0.25, place + 0.25], [mean, mean], color=colour, linewidth=2.5)
        middle = (len(values[arm]) - 1) / 2
        offsets = [place + 0.12 * (i - middle) for i in range(len(values[arm]))]
        axis.plot(
            offsets, values[arm], "o", color=colour, markersize=5, markeredgecolor="white",
            markeredgewidth=0.6,
        )  # fmt: skip
    axis.set(ylim=(low, high), ylabel=f"{metric.label}, {metric.better} is better")
    axis.set_xticks(range(len(arms)), arms, rotation=35, ha="right")
    plain(axis, "y")
