"""What was measured, as targets that the cost model takes."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

from benchmarks.gpu_check.figures import targets_toml
from benchmarks.table import Row
from nmcompile.compressed import plans
from nmcompile.execution.targets import named

LINE = {"m": 16384, "n": 14336, "k": 4096, "alg_id": 0, "split_k": 1, "data": "normal", "own": True}


def row(mode: str, provider: str, metric: str, value: float, **rest: str) -> Row:
    figures = dict.fromkeys(("p20", "p50", "p80"), value)
    return Row(kernel="gpu_check", mode=mode, provider=provider, metric=metric, **figures, **rest)


def written(gpu: str, stand_in: bool = False) -> str:
    cube = {"x": "8192x8192x8192", "config": "fprop, own, normal"}
    rows = [
        row("compress", "copy", "bandwidth (TB/s)", 2.9, x="1"),
        row("gain", "torch.mm", "time (us)", 1400.0, **cube),
        row("host", "_cslt_sparse_mm", "host time (us)", 500.0, x="1"),
        row("host", "kept plan", "host time (us)", 20.0, x="1"),
    ]
    lines = [
        {**LINE, "gain": 1.42, "alg_id": 3},
        {**LINE, "gain": 1.9, "alg_id": 7, "own": False},
        {**LINE, "gain": 1.8, "data": "zeros"},
    ]
    return targets_toml(gpu, "abc", stand_in, rows, lines)


def test_the_cost_model_takes_what_was_measured(monkeypatch, tmp_path):
    file = tmp_path / "targets.toml"
    file.write_text(written("NVIDIA H100 80GB HBM3"))
    monkeypatch.setenv("NMCOMPILE_TARGETS", str(file))
    target = named("h100")
    assert [g.gain for g in target.gains] == [1.42]
    assert target.gain(16384, 14336, 4096) == 1.42
    assert target.figures.bandwidth.value == 2.9e12
    assert target.figures.dense.value == 2 * 8192**3 / 1.4e-3
    assert target.figures.setup.value == pytest.approx(20e-6)
    assert target.figures.dense.known == "measured"
    assert target.figures.launch.known == "assumed"  # the package's own
    monkeypatch.setattr(plans, "asked", lambda: False)
    assert "value = 0.0005" in written("NVIDIA H100 80GB HBM3")


def test_nothing_of_a_stand_in_is_called_measured():
    text = written("NVIDIA H100 80GB HBM3 (null GPU)", stand_in=True)
    assert "measured" not in text
    assert "null GPU" in text


def test_a_gpu_without_a_target_gets_no_file():
    assert written("NVIDIA T4") == ""
