"""The plot of a study: loss curves, and the validation metric of every run."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.accuracy.results import Row, arms_of
from benchmarks.accuracy.studies import ARMS, Study

#: Okabe and Ito's colours, distinct in the common forms of colour blindness, and a brown.
_COLOURS = ("#000000", "#56B4E9", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8C6D46")
_COLOUR = dict(zip(ARMS, _COLOURS, strict=True))


def draw(study: Study, rows: Sequence[Row], curves: Sequence[Row]) -> bytes:
    """A PNG with a row per network. The band of a curve is the range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    networks = arms_of(rows)
    figure, axes = plt.subplots(
        len(networks), 2, figsize=(10, 1.6 + 2.9 * len(networks)), squeeze=False,
        layout="constrained", width_ratios=(1.25, 1),
    )  # fmt: skip
    for (network, arms), (left, right) in zip(networks.items(), axes, strict=True):
        own = [r for r in rows if r["network"] == network]
        lines = [r for r in curves if r["network"] == network]
        shown = [arm for arm in arms if arm not in _far(study, own, arms)]
        _curves(left, lines, arms, shown)
        left.set(xlabel="step", ylabel="training loss (nats)", title=network)
        _points(right, study, own, arms, shown)
        right.set_title(f"{network}: validation, a point per seed")
    if all(arms == list(networks.values())[-1] for arms in networks.values()):
        for axis in axes[:-1, 1]:
            axis.tick_params(labelbottom=False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    plt.close(figure)
    return _smaller(out)


def _smaller(png: io.BytesIO) -> bytes:
    """The picture with 128 colours, a third of the bytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(png).convert("RGB").quantize(128).save(out, format="png", optimize=True)
    return out.getvalue()


def _far(study: Study, rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """Arms so far from dense that the axes would show nothing else."""
    metric = study.metric.column
    means = [statistics.fmean(r[metric] for r in rows if r["arm"] == arm) for arm in arms]
    distances = [abs(mean - means[0]) for mean in means]
    limit = 6 * statistics.median(distances)
    return [arm for arm, d in zip(arms, distances, strict=True) if d > limit > 0]


def _curves(axis: Any, rows: Sequence[Row], arms: Sequence[str], shown: Sequence[str]) -> None:
    for arm in arms:
        losses: dict[float, list[float]] = {}
        for row in rows:
            if row["arm"] == arm:
                losses.setdefault(row["step"], []).append(row["train_loss"])
        steps, values = list(losses), list(losses.values())
        width, above = (2.4, 3) if arm == "dense" else (1.4, 2)
        mean = [statistics.fmean(v) for v in values]
        axis.plot(steps, mean, color=_COLOUR[arm], label=arm, linewidth=width, zorder=above)
        low, high = list(map(min, values)), list(map(max, values))
        axis.fill_between(steps, low, high, color=_COLOUR[arm], alpha=0.12, linewidth=0)
    visible = [row["train_loss"] for row in rows if row["arm"] in shown]
    low, high = min(visible), max(visible)
    if high / low > 20:
        axis.set_yscale("log")
        axis.set_ylim(low / 1.3, high * 1.3)
    else:
        axis.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


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
        mean, colour = statistics.fmean(values[arm]), _COLOUR[arm]
        if arm not in shown:  # an arrow, and where it points to
            edge, inside = (high, high - 3 * margin) if mean > high else (low, low + 3 * margin)
            axis.annotate(
                f"{mean:.1f}", (place, edge), (place, inside), color=colour, ha="center",
                va="center", arrowprops={"arrowstyle": "->", "color": colour},
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
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
