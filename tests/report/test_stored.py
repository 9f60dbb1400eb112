"""Reports on disk: as they were, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmcompile.compressed.layouts import Layout
from nmcompile.gemm import OperandKind
from nmcompile.report.report import GraphReport
from nmcompile.report.stored import StoredReports
from tests.report.samples import graph, site, skipped


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def reports() -> list[GraphReport]:
    sparse = site(
        pruned=OperandKind.ACTIVATION,
        format="2:4",
        execution="sparse",
        layout=Layout.CUSPARSELT_SM90,
        dense_us=12.5,
    )
    own = {"skipped": (skipped(),), "region": ("a", "b"), "digest": "digest"}
    return [graph(sparse, site("é\udc80"), **own), graph(training=True, digest="digest")]


def test_what_was_saved_is_loaded_by_its_digest_alone() -> None:
    stored = StoredReports("digest")
    assert stored.load() is None
    stored.save(reports())
    assert StoredReports("digest").load() == reports()
    assert StoredReports("another").load() is None
    stored.save([])
    assert stored.load() is None


@pytest.mark.parametrize(
    "text",
    ["", '[{"cut":', "{}", "[]", "[3]", '[{"digest": "of another version"}]', "[" * 100_000, "\0"],
)
def test_what_cannot_be_read_is_none_with_a_word_in_the_log(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = StoredReports("digest")
    stored.save(reports())
    (path,) = tmp_path.glob("nmcompile/*.json")
    path.write_text(text)
    assert stored.load() is None
    assert f"unreadable report {path} is made anew" in caplog.text


CHANGES = [
    ('"digest": "digest"', '"digest": "other"'),
    ('"pruned": "activation"', '"pruned": null'),
    ('"2:4"', '"1:0"'),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_what_was_changed_or_is_of_another_graph_is_none(
    before: str, after: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = StoredReports("digest")
    stored.save(reports())
    (path,) = tmp_path.glob("nmcompile/*.json")
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    assert stored.load() is None
    assert "its content is not what was written" in caplog.text


def test_the_report_of_another_graph_is_none(caplog: pytest.LogCaptureFixture) -> None:
    StoredReports("other").save(reports())
    assert StoredReports("other").load() is None
    assert "it is of another graph" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "nmcompile").touch()
    stored = StoredReports("digest")
    stored.save(reports())
    assert "no report is kept beside the cache" in caplog.text
    assert stored.load() is None
