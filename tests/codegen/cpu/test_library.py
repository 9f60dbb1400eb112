"""A library in the cache that is dead is built again, once; a living one is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nmcompile import _torch
from nmcompile.codegen.cpu import library


def source(name: str) -> str:
    return f'extern "C" const char* nm_answer() {{ return "{name}"; }}\n'


def build(text: str) -> Path:
    """Build it and load nothing: the loader knows by its path what a process has loaded."""
    found = _torch.load_cpp(text, lambda path: SimpleNamespace(path=path))
    assert isinstance(found.path, Path)
    return found.path


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    "cut",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"no library at all",
        lambda whole: bytes(len(whole)),
    ],
    ids=["empty", "half", "all but its end", "text", "zeros"],
)
def test_a_dead_library_is_built_again(
    cut: Callable[[bytes], bytes], request: pytest.FixtureRequest
) -> None:
    text = source(request.node.callspec.id)
    path = build(text)
    whole = path.read_bytes()
    path.write_bytes(cut(whole))
    assert library.load(text, "nm_answer")._name == str(path)
    assert library.damage(path) is None
    assert len(path.read_bytes()) == len(whole)


def test_a_living_library_is_not_built_again() -> None:
    path = build(source("living"))
    before = path.stat()
    library.load(source("living"), "nm_answer")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_library_that_stays_without_the_function_is_an_error() -> None:
    with pytest.raises(OSError, match="it has no function nm_other"):
        library.load(source("living"), "nm_other")


def test_what_another_process_has_built_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "dead.so"
    path.touch()
    dead = library.DeadLibrary(path, "it is empty")
    other = tmp_path / "new.so"
    other.write_text("alive")
    other.replace(path)
    dead.remove()
    assert path.read_text() == "alive"
    library.DeadLibrary(path, "it is dead").remove()
    assert not path.exists()
