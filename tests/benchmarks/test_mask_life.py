"""The benchmark of kept masks: its rows, and the steps that take a mask anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mask_life, records


@pytest.mark.slow
def test_rows_of_every_variant(tmp_path: Path) -> None:
    small = ["--rounds", "2", "--width", "64", "--depth", "1", "--batch", "1"]
    mask_life.main(["--out", str(tmp_path / "m.csv"), *small])
    rows = records.read(tmp_path / "m.csv")
    found = [(row["provider"], row["metric"]) for row in rows]
    assert [p for p, metric in found if metric == "step (s)"] == list(mask_life.PROVIDERS)
    assert (mask_life.KEPT, "refresh 1 over this one") in found
    assert {row["mode"] for row in rows} == {"128 tokens"}


def test_steps_with_a_refresh_are_told_apart() -> None:
    first = mask_life.KEPT_FOR - mask_life.WARM - 1  # the step that is the 40th
    kept = [1.0] * 60
    kept[first] = 5.0
    found = {"inductor": [1.0] * 60, "weights": [2.0] * 60, mask_life.KEPT: kept}
    rows = {(r.provider, r.metric): r for r in mask_life.rows_of(mask_life.Shape(), found)}
    assert rows[mask_life.KEPT, "with a refresh (s)"].p50 == 5.0
    assert rows[mask_life.KEPT, "step (s)"].p80 == 1.0
    assert rows["weights", "mean of a step (s)"].ratio_to_inductor == 2.0
    assert rows[mask_life.KEPT, "refresh 1 over this one"].p50 == 2.0


def test_the_page_quotes_what_is_published() -> None:
    rows = records.read(records.RESULTS / "mask_life.csv")
    page = (records.ROOT / "docs" / "mask_life.md").read_text()
    steps = {r["provider"]: r for r in rows if r["metric"] == "step (s)"}
    for name in mask_life.PROVIDERS[1:]:
        assert f"{float(steps[name]['ratio_to_inductor']):.2f}" in page
