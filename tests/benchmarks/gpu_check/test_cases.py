"""Every section but training, rehearsed, and the inputs of its cases."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("typer")

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.cases import inputs, probe
from benchmarks.gpu_check.cli import BUDGETS
from tests.benchmarks.gpu_check.rehearsal import (
    assert_targets_are_measured,
    rehearse,
    statuses,
)


def test_probe(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "probe")
    assert set(statuses(data).values()) == {"ok"}
    checks = data["sections"]["probe"]["cases"]["bfloat16"]["checks"]
    assert len(checks) == len(probe.UNITS) + 1


@pytest.mark.parametrize("only", ["compress bfloat16 mvue 2:4*", "compress c*", "mean*", "mm*"])
def test_kernels(tmp_path, only):
    data = rehearse(tmp_path, "--inline", "--only", f"kernels/{only}")
    assert set(statuses(data).values()) == {"ok"}


@pytest.mark.slow
def test_compiled_kernels(tmp_path):
    data = rehearse(tmp_path, "--inline", "--only", "kernels/compiled [bw]*")
    assert set(statuses(data).values()) == {"ok"}


def test_products(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "products")
    assert set(statuses(data).values()) == {"ok"}
    assert_targets_are_measured(tmp_path, "products")


def test_names_are_unique_and_budgets_cover_all_sections():
    for rehearsed in (False, True):
        keys = [case.key for case in cases.all_cases(rehearsed)]
        assert len(keys) == len(set(keys))
        assert list(dict.fromkeys(k.split("/")[0] for k in keys)) == list(BUDGETS)
    assert sum(BUDGETS.values()) < 9 * 60


def test_operands_keep_their_place_in_memory():
    strides = {"transposed": (1, 6), "sliced": (13, 1), "shifted": (5, 1), "normal": (5, 1)}
    for kind, stride in strides.items():
        x = inputs.operand(kind, 6, 5, torch.bfloat16)
        assert x.shape == (6, 5)
        assert x.stride() == stride
    assert inputs.operand("shifted", 6, 5, torch.bfloat16).data_ptr() % 16
    special = inputs.operand("special", 64, 64, torch.float16)
    assert special.isnan().any()
    assert special.isinf().any()


def test_differences_are_found():
    x = torch.tensor([1.0, torch.nan, -0.0], dtype=torch.float16)
    assert inputs.difference(x, x.clone()) == ""
    y = torch.tensor([1.0, torch.nan, 0.0], dtype=torch.float16)
    assert inputs.difference(x, y) == "1 of 3 differ, first at 2: 8000, not 0000"
    assert "first at 5: 128, not 0" in inputs.byte_difference(x, y)
    assert inputs.relative_error(x, x) != 0  # NaN
