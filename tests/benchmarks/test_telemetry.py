"""The benchmark of telemetry: rows of a network, and targets that can be missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import records, telemetry


@pytest.mark.slow
def test_rows_of_a_network(tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    telemetry.main(["--quick", "--only", "gpt", "--rounds", "2", "--out", str(out)])
    rows = records.read(out)
    assert [(r["mode"], r["provider"], r["metric"]) for r in rows] == [
        *(("gpt full", kind, "step (ms)") for kind in ("without", "sampled", "other")),
        *(("gpt full", kind, "over without") for kind in ("sampled", "other", "every=100")),
        ("gpt full", "losses", "equal (1 = all)"),
    ]
    assert rows[-1]["p50"] == "1"


def test_a_sample_that_costs_too_much_or_changes_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--only", "gpt", "--out", str(tmp_path / "t.csv")]
    for sampled, equal, missed in ((3.5, True, True), (1.5, False, True), (1.5, True, False)):
        times = {"without": [1.0, 1.0], "sampled": [sampled] * 2, "other": [1.0, 1.0]}
        monkeypatch.setattr(telemetry, "measure", lambda *_, found=(times, equal): found)
        if missed:
            with pytest.raises(SystemExit, match="a target is missed"):
                telemetry.main(arguments)
        else:
            telemetry.main(arguments)


def test_what_is_published_costs_less_than_a_hundredth_and_changes_no_loss() -> None:
    rows = records.read(records.RESULTS / "telemetry.csv")
    found = {(r["mode"], r["provider"]): r for r in rows if r["metric"] != "step (ms)"}
    assert {mode for mode, _ in found} == {"gpt full", "resnet full", "vit full"}
    for mode in ("gpt full", "resnet full", "vit full"):
        assert float(found[mode, "every=100"]["p80"]) < 1.01
        assert found[mode, "losses"]["p50"] == "1"
