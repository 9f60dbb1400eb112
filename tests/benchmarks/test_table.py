"""Rows: what misses a target, and what a run replaces."""

from __future__ import annotations

import csv

from benchmarks import table


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
    table.write_csv(path, [row(mode="a"), row(mode="b")])
    table.write_csv(path, [row(mode="b", p50=7.0)])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["mode"], r["p50"]) for r in rows] == [("a", "2"), ("b", "7")]
    assert list(rows[0])[:4] == ["kernel", "provider", "mode", "metric"]
