"""What is decided for the models of the zoo, as JSON and without compiling: to compare commits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import nmcompile
from benchmarks import records
from benchmarks.zoo.entry import Entry
from nmcompile import Report

RECIPES = ("full", "full-exact")


def write_reports(entry: Entry, folder: Path) -> list[Path]:
    """Write ``NAME.RECIPE.json`` for each recipe: the report of what the check compiles.

    Without the graphs' digests, which cover the package's sources and so change with every commit.
    """
    paths = []
    for recipe in RECIPES:
        report = json.loads(explained(entry, recipe).to_json())
        for graph in report["graphs"]:
            del graph["digest"]
        paths.append(folder / f"{entry.name}.{recipe}.json")
        records.save(paths[-1], json.dumps(report, indent=2) + "\n")
    return paths


def explained(entry: Entry, policy: str) -> Report:
    """The report on the model as its loss calls it."""
    torch._dynamo.reset()
    model, batch = entry.build()
    reports = []

    def run(*args: Any, **inputs: Any) -> Any:
        reports.append(nmcompile.explain(model, *args, policy=policy, **inputs))
        return model(*args, **inputs)

    entry.loss(run, batch)  # type: ignore[arg-type]
    return reports[0]
