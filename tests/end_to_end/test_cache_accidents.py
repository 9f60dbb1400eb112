"""Caches that were damaged, raced for, interrupted, made by other sources, or cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import nmcompile

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, torch, nmcompile
from torch import nn
from torch._dynamo.utils import counters
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
compiled = torch.compile(model, backend=sys.argv[1])
torch.manual_seed(1)
x = torch.randn(12, 32)
print("compiling", file=sys.stderr, flush=True)
loss = compiled(x).square().mean()
loss.backward()
result = [loss.item(), *(p.grad.double().sum().item() for p in model.parameters())]
pruned = nmcompile.last_report().totals.pruned_sites if sys.argv[1] == "nm_sparse" else 0
hit = counters["aot_autograd"]["autograd_cache_hit"]
print(json.dumps({"result": result, "pruned": pruned, "hit": hit}))
"""


def start(cache: Path, backend: str = "nm_sparse", **keys: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), **keys.pop("env", {})}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT, backend]
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, **keys)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache that two processes raced to fill, and what both computed."""
    cache = tmp_path_factory.mktemp("cache")
    first, second = (finish(p) for p in [start(cache), start(cache)])
    assert first["result"] == second["result"]
    assert first["pruned"] == second["pruned"] == 5
    return cache, first


def test_a_cache_that_two_processes_filled_is_used(filled: tuple[Path, dict[str, Any]]) -> None:
    cache, expected = filled
    assert finish(start(cache)) == {**expected, "hit": 1}


def entries(cache: Path, name: str) -> list[Path]:
    """The files of a folder; ``masks``: our compiled mask kernels, which lie among Inductor's."""
    if name == "masks":
        sources = [path for path in cache.glob("**/*.cpp") if "nm_" in path.read_text()]
        return [path.with_suffix(".so") for path in sources]
    return [path for path in cache.glob(f"{name}/**/*") if path.is_file()]


@pytest.mark.parametrize("what", [("aotautograd",), ("nmcompile",), ("masks", "aotautograd")])
def test_damaged_entries_are_made_anew(
    filled: tuple[Path, dict[str, Any]], tmp_path: Path, what: tuple[str, ...]
) -> None:
    """Not the code that Inductor generates: cut in half it ends a process of plain Inductor too."""
    cache, expected = filled
    copy = shutil.copytree(cache, tmp_path / "copy")
    for damaged in (entries(copy, name) for name in what):
        assert damaged
        for path in damaged:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert finish(start(copy))["result"] == expected["result"]


def test_changed_sources_are_not_served_from_the_cache(
    filled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    cache, expected = filled
    package = Path(nmcompile.__file__).parent
    copy = shutil.copytree(package, tmp_path / "nmcompile")
    there = {"env": {"PYTHONPATH": str(tmp_path)}, "cwd": tmp_path}
    assert finish(start(cache, **there))["hit"] == 1  # the same text in another place
    with (copy / "passes" / "assign.py").open("a") as file:
        file.write("\n# changed\n")
    assert finish(start(cache, **there)) == {**expected, "hit": 0}


def test_an_interrupted_compilation_leaves_no_broken_entry(
    filled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, expected = filled
    process = start(tmp_path)
    deadline = time.monotonic() + 200
    while not any(tmp_path.glob("**/*.cpp")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err
    assert not [*tmp_path.glob("nmcompile/**/*.tmp")]
    assert finish(start(tmp_path))["result"] == expected["result"]


def test_a_folder_that_cannot_be_written_is_named_as_inductor_does(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for backend in ("inductor", "nm_sparse"):
        process = start(file / "cache", backend)
        _, err = process.communicate(timeout=300)
        assert process.returncode != 0
        assert "NotADirectoryError" in err
        assert str(file) in err
