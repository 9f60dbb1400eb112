"""Caches of Triton that come from another folder, of another machine."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu_check.caches import carry, settle


def group(folder: Path, kernel: str) -> Path:
    """A compiled kernel as Triton stores it, with the paths of another machine."""
    names = [f"{kernel}.{kind}" for kind in ("json", "cubin", "ptx", "llir")]
    place = folder / f"KEY_OF_{kernel}"
    place.mkdir(parents=True)
    for name in names:
        (place / name).write_text(name)
    paths = {name: f"/elsewhere/{place.name}/{name}" for name in names}
    (place / f"__grp__{kernel}.json").write_text(json.dumps({"child_paths": paths}))
    return place / f"__grp__{kernel}.json"


def test_groups_name_their_files_where_they_lie(tmp_path):
    files = [group(tmp_path, name) for name in ("a", "b")]
    assert settle(tmp_path) == "2 kernels brought along"
    for file in files:
        paths = json.loads(file.read_text())["child_paths"]
        assert len(paths) == 4
        assert all(Path(path).read_text() == name for name, path in paths.items())


def test_what_is_carried_is_what_a_launch_needs(tmp_path):
    group(tmp_path / "here", "a")
    assert carry(tmp_path / "here", tmp_path / "there") == 1
    names = {path.name for path in (tmp_path / "there" / "KEY_OF_a").iterdir()}
    assert names == {"a.json", "a.cubin", "__grp__a.json"}
    (tmp_path / "there").rename(tmp_path / "moved")
    assert settle(tmp_path / "moved") == "1 kernels brought along"
    file = tmp_path / "moved" / "KEY_OF_a" / "__grp__a.json"
    assert all(Path(p).exists() for p in json.loads(file.read_text())["child_paths"].values())
    assert settle(tmp_path / "nothing") == "0 kernels brought along"


def test_another_build_of_triton_is_told(tmp_path):
    group(tmp_path / "here", "a")
    carry(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there" / "build").write_text("of Python 3.13")
    assert settle(tmp_path / "there").endswith("of another build of Triton: all are compiled anew")
