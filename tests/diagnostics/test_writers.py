"""Where rows go: whole samples into a file, or nothing; scalars by tag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nmcompile import ArgumentError, NMError
from nmcompile.diagnostics.writers import COLUMNS, CSVFile, scalars, writer_to

ROW = {"step": 100, "module": "a,b", "role": "wgrad", "product": 0, "prune": "gradient",
       "format": "2:4", "method": "mvue", "energy": 0.123456789, "variance": None,
       "saturation": 0.0, "cosine": None, "flips": None}  # fmt: skip
HEAD = "step,module,role,product,prune,format,method,energy,variance,saturation,cosine,flips\n"
LINE = '100,"a,b",wgrad,0,gradient,2:4,mvue,0.123457,,0,,\n'


def test_a_file_grows_by_samples(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    writer_to(str(path))([ROW, ROW])
    assert path.read_text() == HEAD + LINE + LINE
    writer_to(path)([ROW])
    assert path.read_text() == HEAD + 3 * LINE


def test_a_file_that_is_empty_is_new(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.touch()
    writer_to(path)([ROW])
    assert path.read_text() == HEAD + LINE


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "hello", HEAD[:-1], HEAD.replace("flips", "x")])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(NMError, match=r"t\.csv is no table of this telemetry: name another file"):
        writer_to(path)
    assert path.read_text() == text


def test_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEAD + LINE[:-4])
    with pytest.raises(NMError, match=r"its last line is cut off.*remove that line"):
        writer_to(path)


def test_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NMError, match=r"is a folder: name a file in it, such as .*telemetry\.csv"):
        writer_to(tmp_path)
    with pytest.raises(NMError, match="cannot be written: there is no folder"):
        writer_to(tmp_path / "no" / "t.csv")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NMError, match="cannot be written: permission denied"):
        writer_to(tmp_path / "t.csv")


def test_a_full_disk_leaves_whole_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CSVFile(tmp_path / "t.csv")
    file.write([ROW])
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:10]))
    with pytest.raises(NMError, match="cannot be written: no space is left"):
        file.write([ROW])
    assert file.path.read_text() == HEAD + LINE
    monkeypatch.undo()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(NMError, match="cannot be written: Is a directory"):
        file.write([ROW])


def test_scalars_have_tags() -> None:
    found: list[Any] = []
    second = {**ROW, "module": "", "product": 1}
    scalars(lambda *scalar: found.append(scalar), [ROW, second])
    assert found == [
        ("nmcompile/a,b/wgrad/energy", 0.123456789, 100),
        ("nmcompile/a,b/wgrad/saturation", 0.0, 100),
        ("nmcompile/(root)/wgrad.1/energy", 0.123456789, 100),
        ("nmcompile/(root)/wgrad.1/saturation", 0.0, 100),
    ]


def test_a_function_gets_the_rows() -> None:
    found: list[Any] = []
    writer_to(found.extend)([ROW])
    assert found == [ROW]
    assert tuple(ROW) == COLUMNS


def test_nothing_else_writes() -> None:
    with pytest.raises(ArgumentError, match="to = 3: write to = a path"):
        writer_to(3)
