"""The suite of this folder in Triton's interpreter, and a compiled model whose kernels it runs.

The interpreter is chosen when Triton is imported, so it needs a process of its own. Claims: those
of the tests that take ``device`` (``conftest.py``); and a compiled model whose kernels are
interpreted trains as one whose kernels are the oracle.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PARTS = 6


def run(*arguments: str, cache: Path, **settings: str) -> str:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), **settings}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("part", range(PARTS))
def test_interpreted_kernels_equal_the_oracle(part: int, tmp_path: Path) -> None:
    found = run(
        *("pytest", "tests/kernels", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"),
        cache=tmp_path,
        TRITON_INTERPRET="1",
        NMCOMPILE_KERNELS_ON="interpreter",
        NMCOMPILE_KERNELS_PART=f"{part}/{PARTS}",
    )
    summary = found.splitlines()[-1]
    assert "skipped" not in summary
    assert int(re.search(r"(\d+) passed", summary)[1]) >= 20


def test_a_model_with_interpreted_kernels(tmp_path: Path) -> None:
    name = "tests.kernels.interpreted_model"
    lines = run(name, cache=tmp_path, TRITON_INTERPRET="1").splitlines()
    assert "kernels 4" in lines
    oracle = run(name, cache=tmp_path / "2")
    losses = [[float(x) for x in text[0].split()[1:]] for text in (lines, oracle.splitlines())]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
