"""Files of a report: whole or not there, and one sentence for what is wrong with one."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from nmcompile import NMError, Policy, Report, cache
from nmcompile.report import files
from nmcompile.report.nodes import Node
from tests.report.samples import graph, site

NODE = Node("mm", "aten.mm", "fc", False, ("4", "8"), "float32", "net.py:3", ())
REPORT = Report.of(Policy.recipe("full"), (graph(site("fc"), nodes_after=(NODE,)),))


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for text in ("first", "s\u00e9cond"):
        assert files.write(str(tmp_path / "file"), text) == tmp_path / "file"
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    files.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"


def test_a_pipe_is_written_as_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    files.write(tmp_path / "pipe", "text")
    reader.join()
    assert got == ["text"]


@pytest.mark.parametrize("method", ["to_json", "to_html", "to_model_explorer"])
@pytest.mark.parametrize(
    ("place", "why"), [("gone/file", "No such file or directory"), (".", "Is a directory")]
)
def test_what_cannot_be_written_is_one_sentence(
    tmp_path: Path, method: str, place: str, why: str
) -> None:
    if method == "to_html":
        pytest.importorskip("fast_sugiyama")
    with pytest.raises(NMError, match=rf"^{tmp_path / place}: cannot be written: {why}$"):
        getattr(REPORT, method)(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    REPORT.to_json(tmp_path / "report.json")
    before = (tmp_path / "report.json").read_text()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(NMError, match="No space left on device"):
        REPORT.to_json(tmp_path / "report.json")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == before


def test_a_report_is_read_as_it_was(tmp_path: Path) -> None:
    REPORT.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json") == REPORT


def wrong(**changes: Any) -> str:
    return json.dumps({**json.loads(REPORT.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (wrong(schema_version=2), "is a report of schema_version 2, and this nmcompile reads 3: "),
        (wrong(schema_version="x"), "is a report of schema_version 'x', and this nmcompile reads"),
        (wrong(policy=3), "is no report as it was written: policy: Input should be a valid string"),
        (wrong(more=3), "is no report as it was written: more: Extra inputs are not permitted"),
        ("{", "is no JSON: Expecting property name"),
        ("[" * 100_000, "is no JSON: "),
        ("[]", "is no report: `nmcompile explain TARGET --json` writes one"),
        ('{"schema_version": 3}', "is no report: "),
    ],
)
def test_what_is_no_report_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(NMError) as error:
        Report.from_json(path)
    assert str(error.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_gone_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(NMError, match=r"gone\.json: cannot be read: No such file"):
        Report.from_json(tmp_path / "gone.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(NMError, match=r"bytes\.json: is no JSON: "):
        Report.from_json(tmp_path / "bytes.json")
