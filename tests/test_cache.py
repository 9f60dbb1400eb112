"""Our files beside Inductor's cache: whole or not there, whatever happens on the way."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nmcompile import cache


def test_they_lie_inside_of_inductors_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere/else")
    assert cache.folder() == Path("/somewhere/else/nmcompile")


def test_a_file_is_written_with_the_folders_above_it_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    for data in (b"first", b"", b"\0\xff second"):
        cache.write(path, data)
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


def test_who_can_read_inductors_files_can_read_ours(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        cache.write(tmp_path / "ours", b"")
        (tmp_path / "theirs").touch()
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("ours", "theirs")}
    assert modes == {0o640}


class Interrupted(BaseException):
    """Such as Ctrl-C: no ``Exception``."""


@pytest.mark.parametrize("error", [OSError("disk full"), Interrupted()])
@pytest.mark.parametrize("step", ["fdopen", "replace"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    cache.write(path, b"old")

    def fail(first: int | str, *_: object) -> None:
        if isinstance(first, int):
            os.close(first)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(type(error)):
            cache.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        cache.write(tmp_path / "file" / "below", b"")


def test_of_many_writers_one_wins_and_readers_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([i]) * 100_000 for i in range(4)]
    cache.write(path, contents[0])

    def write_and_read(data: bytes) -> list[bytes]:
        seen = []
        for _ in range(30):
            cache.write(path, data)
            seen.append(path.read_bytes())
        return seen

    with ThreadPoolExecutor(len(contents)) as pool:
        seen = [data for some in pool.map(write_and_read, contents) for data in some]
    assert set(seen) <= set(contents)
    assert list(tmp_path.iterdir()) == [path]
