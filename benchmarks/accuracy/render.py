"""Pages and plots from the CSV files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from benchmarks import records
from benchmarks.accuracy import claims, gradient_plots, pareto, plots, summary
from benchmarks.accuracy.results import Store
from benchmarks.accuracy.studies import STUDIES


def study(store: Store, console: Console) -> None:
    """Table, Markdown and plots of a study whose CSV files are there."""
    rows = store.rows()
    summary.show(console, store.study, rows)
    records.save(store.path(".md"), summary.markdown(store.study, rows))
    records.save(store.path(".png"), plots.draw(store.study, rows, store.rows("_curves.csv")))
    if signals := store.rows("_gradients.csv"):
        picture = gradient_plots.draw(store.study, store.rows("_curves.csv"), signals)
        records.save(store.path("_gradients.png"), picture)
    console.print(f"written: {store.path('*')}", highlight=False)


def together(folder: Path, console: Console) -> None:
    """What all studies say together: the claims, and accuracy against FLOPs."""
    found = [(s, Store(folder, s).rows()) for s in STUDIES.values()]
    found = [(s, rows) for s, rows in found if rows]
    records.save(folder / "accuracy_claims.md", claims.markdown(found))
    records.save(folder / "accuracy_pareto.png", pareto.draw(found))
    console.print(
        f"written: {folder / 'accuracy_claims.md'}, {folder / 'accuracy_pareto.png'}",
        highlight=False,
    )
