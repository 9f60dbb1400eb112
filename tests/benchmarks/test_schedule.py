"""The benchmark of switches: rows of both ways to compile, and a target that can be missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import records, schedule


@pytest.mark.slow
def test_rows_of_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--out", str(tmp_path / "s.csv"), "--rounds", "4", "--depth", "1"]
    schedule.main(arguments)
    rows = records.read(tmp_path / "s.csv")
    assert [(r["mode"], r["metric"]) for r in rows] == [
        (mode, f"{metric} (us)")
        for mode in ("whole", "each block")
        for metric in ("switch", "step", "first call")
    ]
    slow = {"switch": [2000.0], "step": [1.0], "first call": [1.0]}
    monkeypatch.setattr(schedule, "build", lambda *rest: (None, ()))
    monkeypatch.setattr(schedule, "measure", lambda *rest: slow)
    with pytest.raises(SystemExit, match="a target is missed"):
        schedule.main(arguments)


def test_what_is_published_meets_its_target() -> None:
    rows = records.read(records.RESULTS / "schedule.csv")
    switches = [row for row in rows if row["metric"] == "switch (us)"]
    assert {row["mode"] for row in switches} == {"whole", "each block"}
    assert all(float(row["p80"]) < 1000 for row in switches)
