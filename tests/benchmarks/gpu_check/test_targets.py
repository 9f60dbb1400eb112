"""The targets name what is measured, and the verdict is of measured rows."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("typer")

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.cases import gain, products, training
from benchmarks.gpu_check.targets import (
    DECLINED,
    GAIN,
    PRODUCTS,
    SPARSE,
    STEP,
    TARGETS,
    Target,
    target_of,
    verdict,
)
from benchmarks.table import Row


def test_targets_name_what_is_measured_on_a_gpu():
    names = {case.key for case in cases.all_cases(rehearse=False)}
    for target in TARGETS:
        if target.metric == STEP:
            assert f"{target.mode}/{target.x}/{target.config}/{target.provider}" in names
            assert target.x in training.NETWORKS
        elif target.metric == GAIN:
            assert f"gain/{target.x} {target.config.partition(',')[0]}" in names
            assert target.x in map(str, gain.SHAPES)
        elif target.mode == "compress":
            assert target.x in [f"{r}x{c}" for r, c in products.OPERANDS]
        else:
            assert f"products/{target.x}" in names


def row(target: Target, value: float, metric: str = "", **rest: object) -> Row:
    place = target.mode, target.provider, metric or target.metric, target.x, target.config
    names = ("mode", "provider", "metric", "x", "config")
    return Row(
        kernel="gpu_check",
        **dict(zip(names, place, strict=True)),
        **dict.fromkeys(("p20", "p50", "p80"), value),
        target=target_of(*place),
        **rest,
    )


def test_the_verdict_is_of_measured_rows():
    fast, slow, *_ = [t for t in TARGETS if t.mode == "compress"]
    lines = {line["target"]: line["result"] for line in verdict([row(fast, 1.1), row(slow, 9.0)])}
    assert lines.pop(fast.title) == "PASS"
    assert lines.pop(slow.title) == "FAIL"
    assert set(lines.values()) == {"not measured"}
    assert len(lines) == sum(not t.optional for t in TARGETS) - 2


@pytest.mark.parametrize(
    ("ran", "best", "ratio", "result"),
    [
        (12, None, 0.7, "PASS"),
        (0, None, 0.7, "FAIL"),
        (None, None, 0.7, "FAIL"),
        (0, 0.89, 0.7, "DENSE"),
        (0, 0.89, 9.0, "FAIL"),
        (None, 0.89, 0.7, "FAIL"),
    ],
)
def test_a_network_that_ran_dense_has_not_passed(ran, best, ratio, result):
    step = next(t for t in TARGETS if t.metric == STEP and t.provider == "full")
    rows = [row(step, 50.0, ratio_to_inductor=ratio), row(step, 21, PRODUCTS)]
    rows += [] if ran is None else [row(step, ran, SPARSE)]
    rows += [] if best is None else [row(step, best, DECLINED)]
    (line,) = [line for line in verdict(rows) if line["target"] == step.title]
    assert line["result"] == result
    assert f"{ran or 0} of 21 products sparse" in line["figure"]
    assert ("dense by decision, at best 0.89x predicted" in line["figure"]) == (best is not None)


def test_rows_of_a_simulation_need_no_sparse_product():
    assert [t.provider for t in TARGETS if t.metric == STEP and not t.sparse] == ["full, simulated"]
    assert all(dataclasses.asdict(t)["bound"][:2] in ("<=", ">=") for t in TARGETS)
