"""Run a function of ``tests.distributed.worker`` under torchrun and collect what each rank says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def torchrun(processes: int, *command: str, fails: bool = False) -> str:
    """The output of ``torchrun -m command``; ``fails`` says whether it must."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
            *("--standalone", "-m", *command),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    output = run.stdout + run.stderr
    assert (run.returncode != 0) == fails, output
    return output


def results(scenario: str, processes: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank returned, in order."""
    torchrun(processes, "tests.distributed.worker", scenario, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
