"""What the plots share: an arm's colour and line, axes and the picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from benchmarks.accuracy.arms import ARMS

# Okabe and Ito's colours, distinct in the common forms of colour blindness: one for each kind of
# pruning; the arms of a kind differ in the line.
_KINDS = {
    "dense": "#000000",
    "activations": "#56B4E9",
    "weights": "#8C6D46",
    "gradients": "#009E73",
    "mse": "#D55E00",
    "full": "#CC79A7",
    "tuned": "#0072B2",
}


def _styles() -> dict[str, dict[str, Any]]:
    """How each arm's line looks."""
    seen: dict[str, int] = {}
    styles: dict[str, dict[str, Any]] = {}
    for arm, pruning in ARMS.items():
        kind = "tuned" if pruning.tuned else arm.split("-")[0]
        number = seen[kind] = seen.get(kind, -1) + 1
        styles[arm] = {
            "color": _KINDS[kind],
            "linestyle": ("-", "--", ":", "-.", (0, (1, 3)))[number],
        }
    return styles


STYLE = _styles()


def figure_of(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, squeeze=False, layout="constrained", **options)


def legend(figure: Any, arms: Sequence[str], columns: int = 5) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], label=arm, **STYLE[arm]) for arm in arms]
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False)


def png_of(figure: Any) -> bytes:
    from matplotlib import pyplot as plt

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


def plain(axis: Any, grid: str = "both") -> None:
    axis.grid(axis=grid, alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
