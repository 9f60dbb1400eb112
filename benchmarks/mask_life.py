"""What it costs to take the masks of weights in every step, and what keeping them for 40 saves.

    python -m benchmarks.mask_life                  # into benchmarks/results/mask_life.csv
    python -m benchmarks.mask_life --batch 1 --rounds 160

A step of a GPT (``benchmarks.gpt``) under the recipe ``weights``, simulated: forward, loss,
backward, SGD, zero_grad. Variants take turns. ``with a refresh``: the steps after which a kept mask
is taken anew. ``mean of a step`` has its share of these.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import torch
from rich.console import Console

from benchmarks import records
from benchmarks.gpt import Shape
from benchmarks.table import Row, percentiles, show, write_csv
from benchmarks.trainer import KEPT_FOR, Trainer

OUT = records.RESULTS / "mask_life.csv"
KEPT = f"weights, refresh {KEPT_FOR}"
PROVIDERS = ("inductor", "weights", KEPT)
WARM = 3


def measure(shape: Shape, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, by variant; each round starts with another one."""
    trainers = {name: Trainer(name, shape) for name in PROVIDERS}
    found: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    for number in range(WARM + rounds):
        for i in range(len(PROVIDERS)):
            name = PROVIDERS[(number + i) % len(PROVIDERS)]
            start = time.perf_counter()
            trainers[name].step()
            if number >= WARM:
                found[name].append(time.perf_counter() - start)
    return found


def rows_of(shape: Shape, found: dict[str, list[float]]) -> list[Row]:
    """Steps of each variant over Inductor's, and of both ways to take masks over each other."""
    common = {"kernel": "mask_life", "mode": f"{shape.batch * shape.context} tokens"}
    common["config"] = str(shape)
    rows = []

    def add(
        provider: str, metric: str, values: Sequence[float], ratio: float | None = None
    ) -> None:
        places = percentiles(values)
        rows.append(
            Row(provider=provider, metric=metric, ratio_to_inductor=ratio, **common, **places)
        )

    base = found["inductor"]
    for name, values in found.items():
        refreshed = [(number + 1 + WARM) % KEPT_FOR == 0 for number in range(len(values))]
        special = [v for v, r in zip(values, refreshed, strict=True) if r and name == KEPT]
        plain = [v for v, r in zip(values, refreshed, strict=True) if not r or name != KEPT]
        ratios = [v / b for v, b in zip(values, base, strict=True)]
        add(name, "step (s)", plain, median(ratios))
        if special:
            add(name, "with a refresh (s)", special)
    mean = {name: fmean(values) for name, values in found.items()}
    for name in PROVIDERS[1:]:
        add(name, "mean of a step (s)", [mean[name]], mean[name] / mean["inductor"])
    each = [a / b for a, b in zip(found["weights"], found[KEPT], strict=True)]
    add(KEPT, "refresh 1 over this one", each)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rounds", type=int, default=2 * KEPT_FOR, help="steps of each variant")
    parser.add_argument("--width", type=int, default=512, help="of the model")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the model")
    parser.add_argument("--batch", type=int, default=4, help="sequences of 128 tokens")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    heads = max(1, args.width // 64)
    shape = Shape(args.width, args.depth, heads, context=128, batch=args.batch)
    rows = rows_of(shape, measure(shape, args.rounds))
    show(rows, Console())
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
