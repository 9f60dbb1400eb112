"""A small layer on other GPUs: of other compute capabilities, or the second of two devices.

Each is a process of its own, since a process sees the same devices all its life. What a step of the
layer does is looked at as in ``steps``; on the second device also whether every kernel was launched
there, while the first one is the current device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.nullgpu.expectations import Measured, count
from tools.nullgpu.log import read

#: By name: the device, and what makes the null GPU into it. No GPU of 12.0 has figures to decide
#: by: its name is that of one that has some.
PLACES = {
    "8.0": ("cuda", {"NULL_CAPABILITY": "8.0", "NULL_NAME": "NVIDIA A100-SXM4-80GB"}),
    "8.9": ("cuda", {"NULL_CAPABILITY": "8.9", "NULL_NAME": "NVIDIA L40S"}),
    "10.0": ("cuda", {"NULL_CAPABILITY": "10.0", "NULL_NAME": "NVIDIA B200"}),
    "12.0": ("cuda", {"NULL_CAPABILITY": "12.0", "NULL_NAME": "NVIDIA B200"}),
    "cuda:1": ("cuda:1", {"NULL_DEVICES": "2"}),
}
RECIPES = ("full", "weights")


def expectations(folder: Path) -> Iterator[Measured]:
    """Run a process for each place; ``folder`` is for their logs and results."""
    for place, (device, given) in PLACES.items():
        name = place.translate({ord(c): "_" for c in ": "})
        out = folder / f"{name}.json"
        command = [sys.executable, "-W", "ignore", "-m", "tools.nullgpu.others", device, str(out)]
        env = {**os.environ, **given, "NULL_LOG": str(folder / name)}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        broken = [] if ended.returncode == 0 else [ended.stderr.strip()[-600:]]
        yield count("cases that end in an error", f"layer, {place}", broken)
        for one, recipe, found in json.loads(out.read_text()) if out.exists() else []:
            yield count(one, f"layer, {place}, {recipe}", found)


def main(device: str, out: Path) -> None:
    """The lines that each expectation counts, for each recipe, as JSON."""
    import torch

    from benchmarks.gpu_check.cases.networks import LlamaShape
    from tools.nullgpu import steps

    shape = LlamaShape(256, 512, 4, 2, 1, 256, batch=2, context=128)
    found = []
    for recipe in RECIPES:
        log = steps.measure(recipe, shape, device).log
        found += [
            ("calls that a GPU refuses", recipe, log.faults),
            ("host waits in a step", recipe, log.waits),
            ("launches elsewhere", recipe, log.elsewhere(torch.device(device).index or 0)),
            ("plans made in a step", recipe, log.plans),
        ]
    spills = read(Path(os.environ["NULL_LOG"])).spills
    found.append(("kernels that spill", "both", [name for name, size in spills.items() if size]))
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
