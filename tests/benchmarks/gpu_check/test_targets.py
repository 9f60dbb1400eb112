"""The targets name what is measured, and the verdict is of measured rows."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("typer")

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.cases import products, training, variants
from benchmarks.gpu_check.targets import TARGETS, verdict
from benchmarks.table import Row


def test_targets_name_what_is_measured_on_a_gpu():
    names = {case.name for case in cases.all_cases(rehearse=False)}
    shapes = {str(shape) for shape in products.CUBES if str(shape) in names}
    for target in TARGETS:
        if target.mode == "training":
            assert f"{target.x}/{target.config}" in names
            assert target.provider in variants.RECIPES
            assert target.x in training.NETWORKS
        else:
            assert any(shape.startswith(target.x) for shape in shapes)


def test_the_verdict_is_of_measured_rows():
    fast, slow, *_ = TARGETS
    rows = [
        Row(
            kernel="gpu_check",
            **{f.name: getattr(t, f.name) for f in dataclasses.fields(t) if f.name in shared},
            **dict.fromkeys(("p20", "p50", "p80"), value),
            target=t.bound,
        )
        for t, value in ((fast, 1.1), (slow, 9.0))
        for shared in [("mode", "provider", "metric", "x", "config")]
    ]
    lines = {line["target"]: line["result"] for line in verdict(rows)}
    assert lines.pop(fast.title) == "PASS"
    assert lines.pop(slow.title) == "FAIL"
    assert set(lines.values()) == {"not measured"}
    assert len(lines) == sum(not t.optional for t in TARGETS) - 2
