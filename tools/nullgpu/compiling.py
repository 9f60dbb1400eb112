"""What the first steps of a layer cost the host, over dense: its compilation.

CPU time, of a process for each recipe whose Inductor cache is empty. Each runs twice, and the
second run counts: what Triton compiles is there by then, as in a program that is started again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from tools.nullgpu.expectations import Measured

_DENSE = "dense"
NAME = "CPU time of the first steps over dense"


def expectations() -> Iterator[Measured]:
    """Run the processes, dense first."""
    from tools.nullgpu.steps import RECIPES

    dense = _seconds(_DENSE)
    for recipe in RECIPES:
        found = _seconds(recipe)
        yield Measured(NAME, f"layer, {recipe}", found / dense, f"{found:.1f} s, {dense:.1f} dense")


def _seconds(recipe: str) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "tools.nullgpu.compiling", recipe]
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
            ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return float(ended.stdout) if ended.returncode == 0 else float("nan")


def main(recipe: str) -> None:
    """Print the seconds, without what Inductor does but once in a process."""
    import torch

    from tools.nullgpu import steps

    x = torch.zeros(64, 64, device="cuda", requires_grad=True)
    torch.compile(lambda x: torch.softmax(x @ x, -1))(x).sum().backward()
    start = time.process_time()
    steps.measure(None if recipe == _DENSE else recipe)
    print(time.process_time() - start)


if __name__ == "__main__":
    main(sys.argv[1])
