"""Generated kernels as files: written once, named by their content, listed for a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmcompile.codegen import loader
from nmcompile.codegen.printer import print_kernel
from tests.kernels.specs import spec


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.cache, "folder", lambda: tmp_path / "nmcompile")


def test_a_kernel_is_a_file_that_is_written_once() -> None:
    path = loader.kernel_path(spec())
    assert path.read_text() == print_kernel(spec())
    before = path.stat().st_mtime_ns
    assert loader.kernel_path(spec()) == path
    assert path.stat().st_mtime_ns == before


def test_a_broken_file_is_written_again() -> None:
    path = loader.kernel_path(spec())
    path.write_text("half of a ker")
    assert loader.kernel_path(spec()).read_text() == print_kernel(spec())


def test_the_kernels_of_a_graph_are_recorded_once_each() -> None:
    loader.record_kernels("digest", [spec(), spec(dims=(0,))])
    loader.record_kernels("digest", [spec()])
    assert [p.name.split("_")[1] for p in loader.recorded_kernels("digest")] == ["rows", "columns"]
    assert loader.recorded_kernels("another") == ()
