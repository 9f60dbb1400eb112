"""The table of versions: a run replaces its own rows and writes after each version."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("typer")

import typer

from benchmarks import records, versions


def test_each_version_is_written_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "versions.csv"

    def result(python: Path, workers: int, tests: list[str]) -> versions.Row:
        if python.name == "3.0":
            raise SystemExit("the suite did not run")
        counts = {"tests": 3, "passed": 2, "skipped": 1, "failed": 0, "seconds": 1}
        words = {"triton": "3.6", "python": "3.11", "failures": ""}
        return versions.Row(torch=python.name, **counts, **words)

    monkeypatch.setattr(versions, "environment", lambda version, folder: folder / version)
    monkeypatch.setattr(versions, "run", result)
    records.write(out, [{"torch": "1.0", "passed": 0}, {"torch": "2.0", "passed": 0}])
    with pytest.raises(SystemExit):
        versions.main(["2.0", "4.0", "3.0"], tmp_path, 1, "", out)
    rows = records.read(out)
    assert [(row["torch"], row["passed"]) for row in rows] == [
        ("1.0", "0"),
        ("2.0", "2"),
        ("4.0", "2"),
    ]
    assert all(rows[1][column] for column in ("machine", "time"))
    with pytest.raises(typer.Exit) as ended:
        versions.main(["2.0"], tmp_path, 1, "", out)
    assert ended.value.exit_code == 0
