"""The benchmarks run, and their eager baseline computes what it claims to."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nmcompile.functional import keep_mask, prune

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("typer")
sys.path.insert(0, str(ROOT))

from benchmarks import eager_hooks, predictions, table  # noqa: E402
from benchmarks.training_step import SECTIONS, app  # noqa: E402


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.training_step", *arguments]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)


@pytest.mark.parametrize("select", [eager_hooks.mse_topk, eager_hooks.mse_compare])
def test_eager_mse_is_the_mask_of_the_library(select):
    x = torch.randn(6, 5, 16)
    assert torch.equal(select(x), x * keep_mask(x, "2:4"))


def test_eager_comparisons_break_ties_to_the_lower_index():
    x = torch.tensor([[1.0, 1, 1, 1], [0, 2, -2, 2], [3, 1, 1, 1], [0, 0, 0, 0]])
    assert torch.equal(eager_hooks.mse_compare(x), prune(x))


def test_eager_mvue_keeps_at_most_two_and_is_unbiased():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    x[0] = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1])
    draws = torch.stack([eager_hooks.mvue(x) for _ in range(4000)]).double()
    assert (draws.view(-1, 4) != 0).sum(1).max() == 2
    assert torch.equal(draws[:, 0], x[0].double().expand(4000, 8))
    error = (draws.mean(0) - x).abs()
    assert (error <= 5 * draws.std(0) / 4000**0.5 + 1e-6).all()


def test_eager_layers_have_dense_gradients_of_the_bias_alone():
    torch.manual_seed(0)
    model = eager_hooks.use_eager_masks(torch.nn.Linear(8, 4))
    x = torch.randn(12, 8, requires_grad=True)
    y = model(x)
    assert torch.equal(y, torch.nn.functional.linear(prune(x), model.weight, model.bias))
    dy = torch.randn_like(y)
    y.backward(dy)
    assert torch.allclose(model.bias.grad, dy.sum(0))
    assert not torch.allclose(model.weight.grad, dy.t() @ x.detach())
    assert not torch.allclose(x.grad, dy @ model.weight.detach())


def test_every_judged_figure_has_a_prediction():
    judged = {key for key in predictions.TARGETS if key.mode != "bitwise"}
    assert judged <= set(predictions.PREDICTIONS)
    assert {key.mode for key in predictions.PREDICTIONS} < set(SECTIONS)


def row(**fields: object) -> table.Row:
    same = {"kernel": "k", "provider": "p", "mode": "m", "metric": "t"}
    return table.Row(**same | table.percentiles([2.0]) | fields)


def test_a_target_is_missed_by_the_ratio_where_there_is_one():
    assert row(ratio_to_inductor=1.2, target="<=1.1").missed
    assert not row(ratio_to_inductor=1.0, target="<=1.1").missed
    assert row(target=">=3").missed
    assert not row(target=">=2").missed
    assert not row().missed


def test_a_run_replaces_the_rows_of_its_own_sections(tmp_path):
    path = tmp_path / "sub" / "results.csv"
    table.write_csv(path, [row(mode="a"), row(mode="b")], ["a", "b"])
    table.write_csv(path, [row(mode="b", p50=7.0)], ["b"])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["mode"], r["p50"]) for r in rows] == [("a", "2"), ("b", "7")]
    assert list(rows[0])[:4] == ["kernel", "provider", "mode", "metric"]


def test_an_unknown_section_is_an_error():
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["--only", "speed"])
    assert result.exit_code == 2
    assert "not a section" in result.output


@pytest.mark.slow
def test_quick_run(tmp_path):
    path = tmp_path / "quick.csv"
    done = run(["--quick", "--only", "bitwise,step", "--threads", "1", "--out", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["provider"] for r in rows} == {"inductor", "full", "dense"}
    equal = next(r for r in rows if r["mode"] == "bitwise")
    assert equal["p50"] == "1"
    assert all(r["torch"] and r["machine"] and r["time"] for r in rows)
