"""Gain against expected loss, as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from nmcompile import cache
from nmcompile.errors import NMError

if TYPE_CHECKING:
    from nmcompile.tuning.result import Tuned


def place_of(tuned: Tuned) -> str:
    """Where the gain is, in words."""
    return f"{tuned.target} in CUDA graphs" if tuned.cuda_graphs else str(tuned.target)


def draw(tuned: Tuned, path: Path) -> Path:
    """Draw the curve of a result; the ending of the name is the picture's format.

    Raises:
        NMError: matplotlib is not installed, knows no such format, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NMError("a plot needs matplotlib: pip install 'nmcompile[study]'") from error
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    scale = 1e6 if tuned.target else 100 / (sum(r.flops for r in tuned.rows) or 1.0)
    axes.plot(
        [p.gain * scale for p in tuned.curve],
        [p.loss for p in tuned.curve],
        marker="o",
        markersize=3,
        linewidth=1,
        color="#4477aa",
        label="products in the order of cost over gain",
    )
    cost = sum(c.loss for row in tuned.rows if (c := row.choice))
    label = f"chosen: {100 * tuned.pruned_share:.0f} % of the FLOPs in pruned products"
    axes.plot([tuned.gain * scale], [cost], "D", color="#cc3311", label=label)
    what = (
        f"predicted time saved on {place_of(tuned)} (us a step)"
        if tuned.target
        else "FLOPs left out (%)"
    )
    axes.set_xlabel(what)
    axes.set_ylabel("expected increase of the loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    out = io.BytesIO()
    try:
        figure.savefig(out, format=path.suffix.lstrip(".") or "png", dpi=150)
        cache.write(path, out.getvalue())
    except ValueError as error:
        raise NMError(f"{path}: {error}") from error
    except OSError as error:
        raise NMError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path
