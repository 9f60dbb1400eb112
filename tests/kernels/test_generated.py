"""Generated kernels in Triton's interpreter: equal to the oracle on the same random numbers.

The interpreter is chosen when Triton is imported, so it needs a process of its own. Claims: every
orientation, method, format and layout, ragged sizes, every prologue; inf, NaN, ties and -0.0; and
a compiled model whose kernels are interpreted trains as one whose kernels are the oracle.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*arguments: str, cache: Path, interpret: bool = True) -> str:
    settings = {"TRITON_INTERPRET": "1"} if interpret else {}
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), **settings}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("part", range(3))
def test_interpreted_kernels_equal_the_oracle(part: int, tmp_path: Path) -> None:
    assert run("tests.kernels.interpreted", str(part), "3", cache=tmp_path).count(" ok") >= 8


def test_a_model_with_interpreted_kernels(tmp_path: Path) -> None:
    lines = run("tests.kernels.interpreted_model", cache=tmp_path).splitlines()
    assert "kernels 4" in lines
    oracle = run("tests.kernels.interpreted_model", cache=tmp_path / "2", interpret=False)
    losses = [[float(x) for x in text[0].split()[1:]] for text in (lines, oracle.splitlines())]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
