"""Generated kernels as files: written once, named by their content, listed for a report."""

from __future__ import annotations

import importlib.util
import inspect
import marshal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nmcompile.codegen import loader
from nmcompile.codegen.printer import parameters, print_kernel
from tests.kernels.specs import all_specs, spec


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


def test_its_name_tells_kernels_apart_and_says_what_they_do() -> None:
    paths = {loader.kernel_path(kind): kind for kind in dict.fromkeys(all_specs())}
    assert len(paths) == len(set(all_specs()))
    assert all(path.name.startswith(kind.name) for path, kind in paths.items())


def test_a_folder_that_cannot_be_written_is_reported_and_the_kernel_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(loader.cache, "folder", lambda: tmp_path / "file" / "nmcompile")
    path = loader.kernel_path(spec())
    assert path.read_text() == print_kernel(spec())
    assert tmp_path not in path.parents
    assert f"kernel {spec().name} is kept for this process alone" in caplog.text
    loader.record_kernels("digest", [spec()])
    assert "a report will not list its kernels" in caplog.text
    assert loader.recorded_kernels("digest") == ()


def test_a_kernel_that_is_gone_is_not_listed() -> None:
    kinds = [spec(), spec(dims=(0,))]
    loader.record_kernels("digest", kinds)
    loader.kernel_path(kinds[0]).unlink()
    assert loader.recorded_kernels("digest") == (loader.kernel_path(kinds[1]),)


@pytest.mark.parametrize(
    "junk", [b"\x8c\xff", b"x" * 10_000, b"/etc/passwd\n", b"../secret.py\n", b"\0\n", b"\n"]
)
def test_a_damaged_list_of_kernels_lists_none_that_are_not_ours(junk: bytes) -> None:
    loader.record_kernels("digest", [spec()])
    (loader.cache.folder() / "secret.py").touch()
    (loader.cache.folder() / "digest.kernels").write_bytes(junk)
    assert loader.recorded_kernels("digest") == ()
    loader.record_kernels("digest", [spec()])
    assert loader.recorded_kernels("digest") == (loader.kernel_path(spec()),)


def test_a_kernel_that_was_changed_is_not_listed() -> None:
    loader.record_kernels("digest", [spec()])
    loader.kernel_path(spec()).write_text("import os\n")
    assert loader.recorded_kernels("digest") == ()


def test_a_forked_child_leaves_the_folder_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Callable[[], None]] = []
    monkeypatch.setattr(loader.atexit, "register", left.append)
    folder = loader._own_folder.__wrapped__()
    with monkeypatch.context() as child:
        child.setattr(loader.os, "getpid", lambda: -1)
        left[0]()
        assert folder.exists()
    left[0]()
    assert not folder.exists()


def test_a_graph_without_kernels_leaves_no_file(tmp_path: Path) -> None:
    loader.record_kernels("digest", [])
    assert list(tmp_path.iterdir()) == []


def plant(path: Path) -> None:
    """Bytecode beside a file, as Python would take it for that of the file."""
    stat = path.stat()
    code = compile(f"def {spec().name}(): pass\nPLANTED = True", str(path), "exec")
    head = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(stat.st_mtime), stat.st_size)
    planted = Path(importlib.util.cache_from_source(str(path)))
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(head + marshal.dumps(code))


def test_what_runs_is_the_text_that_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither bytecode beside the file, nor what is written into the file after it was compared."""
    pytest.importorskip("triton")
    loader.load.cache_clear()
    plant(loader.kernel_path(spec()))
    written = loader._written

    def change(kind: loader.Spec, source: str) -> Path:
        path = written(kind, source)
        path.write_text(f"def {kind.name}(): pass\nPLANTED = True\n")
        return path

    monkeypatch.setattr(loader, "_written", change)
    kernel = loader.load(spec())
    assert "PLANTED" not in kernel.fn.__globals__
    assert inspect.getsource(kernel.fn) in print_kernel(spec())
    loader.load.cache_clear()


def test_a_kernel_is_imported_once_under_its_name() -> None:
    pytest.importorskip("triton")
    loader.load.cache_clear()
    kernel = loader.load(spec())
    assert loader.load(spec()) is kernel
    assert kernel.__name__ == spec().name
    assert kernel.arg_names == [*parameters(spec()), "ROWS", "COLUMNS", "FIT", "ISA"]
