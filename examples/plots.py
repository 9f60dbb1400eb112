"""The plot of a study: loss curves, and the validation metric of every run."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import Any

from examples.results import Row, arms_of
from examples.studies import ARMS, Study

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
        for arm in arms:
            _curve(left, [r for r in curves if r["network"] == network and r["arm"] == arm], arm)
        left.set(yscale="log", xlabel="step", ylabel="training loss (nats)", title=network)
        _points(right, study, [r for r in rows if r["network"] == network], arms)
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


def _curve(axis: Any, curves: Sequence[Row], arm: str) -> None:
    losses: dict[float, list[float]] = {}
    for row in curves:
        losses.setdefault(row["step"], []).append(row["train_loss"])
    steps, values = list(losses), list(losses.values())
    mean = [statistics.fmean(v) for v in values]
    width, above = (2.4, 3) if arm == "dense" else (1.4, 2)
    axis.plot(steps, mean, color=_COLOUR[arm], label=arm, linewidth=width, zorder=above)
    axis.fill_between(
        steps, list(map(min, values)), list(map(max, values)), color=_COLOUR[arm], alpha=0.12,
        linewidth=0,
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _points(axis: Any, study: Study, rows: Sequence[Row], arms: Sequence[str]) -> None:
    metric = study.metric
    for place, arm in enumerate(arms):
        values = [metric.scale * r[metric.column] for r in rows if r["arm"] == arm]
        mean = statistics.fmean(values)
        if place == 0:
            axis.axhline(mean, color="0.6", linewidth=0.8, linestyle=":")
        axis.plot([place - 0.25, place + 0.25], [mean, mean], color=_COLOUR[arm], linewidth=2.5)
        offsets = [place + 0.12 * (i - (len(values) - 1) / 2) for i in range(len(values))]
        axis.plot(
            offsets, values, "o", color=_COLOUR[arm], markersize=5, markeredgecolor="white",
            markeredgewidth=0.6,
        )  # fmt: skip
    axis.set_xticks(range(len(arms)), arms, rotation=35, ha="right")
    axis.set_ylabel(f"{metric.label}, {metric.better} is better")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
