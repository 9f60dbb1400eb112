"""The plot of accuracy against FLOPs: every network of every study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.drawing import STYLE, figure_of, plain, png_of
from benchmarks.accuracy.results import Row, arms_of
from benchmarks.accuracy.studies import Study
from benchmarks.accuracy.summary import BASE, Compared


def draw(studies: Sequence[tuple[Study, Sequence[Row]]]) -> bytes:
    """A PNG with a plot per network: share of the FLOPs pruned against what it loses to dense."""
    from matplotlib.ticker import SymmetricalLogLocator

    networks = [
        (study, rows, network, arms)
        for study, rows in studies
        for network, arms in arms_of(rows).items()
        if BASE in arms and len(arms) > 1
    ]
    columns = min(3, max(1, len(networks)))
    lines = max(1, math.ceil(len(networks) / columns))
    figure, axes = figure_of(lines, columns, figsize=(5.4 * columns, 1.2 + 5 * lines))
    for axis in axes.flat[len(networks) :]:
        axis.set_axis_off()
    labels: list[Any] = []
    for axis, (study, rows, network, arms) in zip(axes.flat, networks, strict=False):
        metric = study.metric
        sign = -1 if metric.better == "higher" else 1
        near = 10.0 ** (2 - metric.digits)
        low, high = -near, near
        for arm in arms:
            found = Compared(study, rows, network, arm)
            if not found.pairs:
                continue
            lost = [sign * metric.scale * d for d in found.differences(metric.column)]
            spread = statistics.stdev(lost) if len(lost) > 1 else 0.0
            place = 100 * found.rows[0]["pruned_flops_share"], statistics.fmean(lost)
            low, high = min(low, place[1] - spread), max(high, place[1] + spread)
            marker = "s" if ARMS[arm].tuned else "^" if ARMS[arm].scheduled else "o"
            axis.errorbar(*place, spread, fmt=marker, capsize=2, color=STYLE[arm]["color"])
            labels.append(axis.annotate(arm, place, (0, 0), textcoords="offset points", fontsize=7))
        axis.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_yscale("symlog", linthresh=near)
        axis.set_ylim(1.3 * low, 1.3 * high)
        axis.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=near, subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set(
            title=f"{network} ({study.name})",
            xlabel="FLOPs with a pruned operand (%)",
            ylabel=f"lost: {metric.label}",
            xlim=(-3, 118),
        )
        plain(axis)
    figure.suptitle(
        "Mean and deviation over seeds. Round: one policy; square: tuned; triangle: scheduled",
        fontsize=9,
    )
    figure.draw_without_rendering()
    _set_apart(labels)
    return png_of(figure)


#: Where a label may be: points to the right of its mark and above it; left of it where negative.
_OFFSETS = [(x, y) for y in (-3, 6, -12, 15, -21, 24, -30, 33, -39, 42) for x in (6, -6)]


def _set_apart(labels: Sequence[Any]) -> None:
    """Move each label to the first place within its plot where it is over no other and no mark."""
    from matplotlib.transforms import Bbox

    marks = [label.axes.transData.transform(label.xy) for label in labels]
    placed: list[Any] = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for label in labels:
        for x, y in _OFFSETS:
            label.set(position=(x, y), horizontalalignment="left" if x > 0 else "right")
            box, plot = label.get_window_extent(), label.axes.get_window_extent()
            inside = plot.x0 <= box.x0 and box.x1 <= plot.x1 and plot.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in placed):
                break
        placed.append(box)
