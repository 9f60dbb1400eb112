"""Every section but training, rehearsed, and the inputs of its cases."""

from __future__ import annotations

import importlib.util
import json
from functools import partial

import pytest
import torch

pytest.importorskip("typer")

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.cases import gain, inputs, kernels, probe, tiles
from benchmarks.gpu_check.cli import BUDGETS, MORE
from nmcompile.masks import reference
from tests.benchmarks.gpu_check.rehearsal import (
    assert_targets_are_measured,
    found,
    make,
    rehearse,
    results_of,
    statuses,
)


def test_probe(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "probe")
    assert set(statuses(data).values()) == {"ok"}
    checks = data["sections"]["probe"]["cases"]["bfloat16"]["checks"]
    assert len(checks) == len(probe.UNITS) + 1


@pytest.mark.parametrize(
    "only", ["compress bfloat16 mvue 2:4*", "masks*bfloat16 mse 2:4", "layout*", "mean*", "mm*"]
)
def test_kernels(tmp_path, only):
    data = rehearse(tmp_path, "--inline", "--only", f"kernels/{only}")
    assert set(statuses(data).values()) == {"ok"}
    cases_ = data["sections"]["kernels"]["cases"].values()
    assert all(case["checks"] for case in cases_)


def test_the_suite_of_kernels_is_cases_and_checks():
    name = "compress bfloat16 mvue 2:4 both"
    assert kernels._names("tests/a.py::test_compress[bfloat16 mvue 2:4 both-3x5 ties]") == (
        name,
        "3x5 ties",
    )
    names = [case.name for case in kernels.cases(rehearse=False)]
    assert name in names
    assert "kernels are generated" in names
    assert len(names) > 70


def test_a_failing_test_of_the_suite_is_a_failed_check(monkeypatch, tmp_path):
    """Kernels that differ from the oracle: every test of the case says how."""
    monkeypatch.setattr(reference, "prune_blocks", lambda *_: 1 / 0)
    name = "kernels/compress bfloat16 mvue 2:4 rows"
    data = rehearse(tmp_path, "--inline", "--only", name, code=1)
    assert statuses(data) == {name: "failed"}
    checks = data["sections"]["kernels"]["cases"][name.partition("/")[2]]["checks"]
    assert len(checks) == 8
    assert not any(check["passed"] for check in checks)
    assert "ZeroDivisionError" in checks[0]["detail"]


def test_what_pytest_cannot_run_is_an_error(tmp_path):
    case = make("gone", partial(kernels.run, keys=["tests/kernels/test_mean.py::test_gone"]))
    results = results_of([case])
    assert found(results) == {"gone": "error"}
    error = results.sections["probe"]["cases"]["gone"]["error"]
    assert "pytest ended with status 4" in error


@pytest.mark.slow
def test_compiled_kernels(tmp_path):
    data = rehearse(tmp_path, "--inline", "--only", "kernels/compiled*")
    assert set(statuses(data).values()) == {"ok"}


def test_gain(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "gain")
    assert set(statuses(data).values()) == {"ok"}
    lines = json.loads((tmp_path / "gpu_check_rehearsal_gains.json").read_text())
    normal = [line for line in lines if line["data"] == "normal" and line["alg_id"] == 0]
    sizes = {line["role"]: (line["m"], line["n"], line["k"]) for line in normal}
    tokens, inputs_, outputs = gain.REHEARSED[0]
    assert sizes == {
        "fprop": (tokens, outputs, inputs_),
        "dgrad": (tokens, inputs_, outputs),
        "wgrad": (outputs, inputs_, tokens),
        "weight": (outputs, tokens, inputs_),
    }
    assert all(line["gain"] == line["dense_s"] / line["sparse_s"] for line in lines)
    assert {line["data"] for line in lines} == {"normal", "zeros"}


def test_a_wrong_algorithm_has_no_gain(monkeypatch, tmp_path):
    """It is noted, not timed; the algorithm that the package uses must be right."""

    def library(session, packed, dense, alg_id=0, **options):
        result = right(session, packed, dense, **options)
        return result if alg_id == 0 else 1.5 * result

    right = gain.library
    monkeypatch.setattr(gain, "library", library)
    data = rehearse(tmp_path, "--inline", "--only", "gain/* wgrad")
    (case,) = data["sections"]["gain"]["cases"].values()
    assert case["notes"]["alg 1"] == "wrong: relative error 0.5"
    assert {row["config"].split(", ")[1] for row in case["rows"]} == {"own", "alg 0"} | {
        row["config"].split(", ")[1] for row in case["rows"] if "split" in row["config"]
    }

    monkeypatch.setattr(gain, "library", lambda *args, **options: 2 * right(*args, **options))
    data = rehearse(tmp_path, "--inline", "--only", "gain/* wgrad", code=1)
    assert set(statuses(data).values()) == {"failed"}


def test_compress_host_and_graphs(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "compress,host")
    assert set(statuses(data).values()) == {"ok"}
    assert_targets_are_measured(tmp_path, "compress")
    data = rehearse(tmp_path, "--inline", "--only", "graphs/replay*")
    assert {status for key, status in statuses(data).items() if "graphs" in key} == {"ok"}


def test_products(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "products")
    assert set(statuses(data).values()) == {"ok"}
    assert_targets_are_measured(tmp_path, "products")


def test_the_package_s_own_tiles_are_candidates(tmp_path):
    host = importlib.import_module("nmcompile.codegen.device.host")
    for method, how, prologue in tiles.KINDS:
        own = host.tile(how, method, computes=prologue != "copy")
        assert (own.rows, own.columns, own.warps) in tiles.CANDIDATES[how]
    data = rehearse(tmp_path, "--inline", "--only", "tiles/mse rows copy")
    assert set(statuses(data).values()) == {"ok"}


def test_names_are_unique_and_budgets_cover_all_sections():
    for rehearsed in (False, True):
        keys = [case.key for case in cases.all_cases(rehearsed)]
        assert len(keys) == len(set(keys))
        assert list(dict.fromkeys(k.split("/")[0] for k in keys)) == [*BUDGETS, *MORE]
    assert sum(BUDGETS.values()) < 7 * 60
    assert list(BUDGETS)[:2] == ["gain", "llama"]


def test_a_section_alone_collects_no_tests(monkeypatch):
    """pytest is needed for the suite of kernels and for nothing else."""
    monkeypatch.setattr(kernels, "_collected", lambda place: 1 / 0)
    assert {case.section for case in cases.all_cases(True, ["gain", "llama"])} == {"gain", "llama"}


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


def test_the_suite_alone_needs_pytest(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pytest" else find(n))
    data = rehearse(tmp_path, "--inline", "--only", "kernels/suite", code=1)
    assert statuses(data) == {"kernels/suite": "failed"}
    keys = [case.key for case in cases.all_cases(True, ["gain", "kernels"])]
    assert "kernels/mm float16 wgrad" in keys
    assert "gain/64x128x64 fprop" in keys
