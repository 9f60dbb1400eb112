"""Rows tell where they come from, and a file is whole whatever happens to a run."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from benchmarks import mask_kernels, records


def test_a_row_tells_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("machine", "python", "torch", "nmcompile", "commit", "time")
    told = records.origin(*columns)
    assert tuple(told) == columns
    assert all(told[column] for column in columns if column != "commit")
    assert told["torch"].startswith(torch.__version__.partition("+")[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["time"])
    assert re.fullmatch(r"([0-9a-f]{12}\+?)?", told["commit"])
    monkeypatch.setenv("NM_COMMIT", "of a copy")
    assert records.origin("commit") == {"commit": "of a copy"}
    with pytest.raises(PackageNotFoundError):
        records.origin("no such package")


def test_a_copy_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.delenv("NM_COMMIT", raising=False)
    records._commit_of_git.cache_clear()
    monkeypatch.setattr(subprocess, "run", fail)
    assert records.commit() == ""
    records._commit_of_git.cache_clear()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    assert records.read(path) == []
    records.write(path, [{"a": 1 / 3, "b": None}, {"b": "x, y", "c": 2}])
    assert path.read_text() == 'a,b,c\n0.333333,,\n,"x, y",2\n'
    assert records.read(path)[1] == {"a": "", "b": "x, y", "c": "2"}
    records.write(path, [], ["a", "b"])
    assert path.read_text() == "a,b\n"


def test_rows_of_the_same_key_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    records.write(path, [{"k": "a", "n": 1, "v": 0}, {"k": "b", "n": 1, "v": 0}])
    records.replace(path, [{"k": "a", "n": 1, "v": 5.0}, {"k": "a", "n": 2, "v": 6.0}], ("k", "n"))
    assert path.read_text() == "k,n,v\nb,1,0\na,1,5\na,2,6\n"


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    records.write(path, [{"a": 1}])

    def cut_off() -> object:
        yield {"a": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write(path, cut_off())
    with pytest.raises(ValueError, match="not in fieldnames"):
        records.write(path, [{"b": 1}], ["a"])
    with pytest.raises(UnicodeEncodeError):
        records.save(path, "\ud800")
    assert records.read(path) == [{"a": "1"}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_published_files_are_as_they_would_be_written(path: Path, tmp_path: Path) -> None:
    rows = records.read(path)
    assert rows
    records.write(tmp_path / path.name, rows)
    assert (tmp_path / path.name).read_text() == path.read_text()


def test_mask_kernels_replace_their_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_kernels, "CASES", [("1:2", "mse")])
    path, threads = tmp_path / "out.csv", str(torch.get_num_threads())
    for size in ("8", "16", "16"):
        arguments = ["--size", size, "--repeats", "2", "--threads", threads, "--out", str(path)]
        mask_kernels.main(arguments)
    rows = records.read(path)
    assert [row["rows"] for row in rows] == ["8"] * 8 + ["16"] * 8
    published = records.read(records.RESULTS / "mask_kernels_cpu.csv")
    assert list(rows[0]) == list(published[0])
