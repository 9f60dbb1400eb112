"""Mask kernels on the CPU: time per element beside a copy of the tensor.

    python benchmarks/mask_kernels.py --out benchmarks/results/mask_kernels_cpu.csv

Providers: ``nm`` (the compiled kernel), ``reference`` (plain PyTorch), ``torch.compile`` (of the
reference), ``clone`` (the floor: read and write once). Providers of one shape take turns, so that
a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import csv
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.masks import reference

CASES = [
    (fmt, method)
    for fmt, methods in {
        "2:4": ("mse", "mvue", "approx-mvue", "uniform", "transposable"),
        "1:2": ("mse", "mvue"),
        "4:8": ("mse", "mvue"),
        "16:32": ("mse", "mvue"),
    }.items()
    for method in methods
]
FIELDS = ["kernel", "provider", "format", "method", "dtype", "orientation", "rows", "columns"]
FIELDS += ["threads", "p20_ns", "p50_ns", "p80_ns", "ratio_to_clone", "torch", "cpu"]


def cpu_name() -> str:
    """The processor's model name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(calls: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Sorted seconds of each call; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 3):
        for name, call in calls.items():
            # The reference takes a hundred times as long; a few runs tell its time.
            if name in ("reference", "torch.compile") and round_ >= 6:
                continue
            start = time.perf_counter()
            call()
            if round_ >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: sorted(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--slow", action="store_true", help="the reference at every format")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(args.size, args.size, generator=torch.Generator().manual_seed(0)).to(dtype)
        for fmt, method in CASES:
            n, m = map(int, fmt.split(":"))
            random = method in ("mvue", "approx-mvue", "uniform")
            seed = torch.tensor([1]) if random else None
            tiles = method == "transposable"
            for name, dims in {"tiles": [0, 1]}.items() if tiles else ORIENTATIONS.items():
                rest = (x, seed, 0, n, m, dims, method)
                calls: dict[str, Callable[[], Tensor]] = {
                    "clone": functools.partial(torch.clone, x),
                    "nm": functools.partial(torch.ops.nm.prune, *rest),
                }
                if (fmt == "2:4" and dtype == torch.float32) or args.slow:
                    plain = functools.partial(lambda *a: reference.prune_and_mask(*a)[0], *rest)
                    calls["reference"] = plain
                    if not tiles:
                        calls["torch.compile"] = torch.compile(plain)
                times = measure(calls, args.repeats)
                floor = quantile(times["clone"], 0.2)
                for provider, t in times.items():
                    q = [quantile(t, p) for p in (0.2, 0.5, 0.8)]
                    rows.append(
                        ["prune", provider, fmt, method, str(dtype).removeprefix("torch."), name]
                        + [args.size, args.size, args.threads]
                        + [f"{1e9 * v / x.numel():.4f}" for v in q]
                        + [f"{q[0] / floor:.2f}", torch.__version__, cpu_name()]
                    )
    show(rows)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([FIELDS, *rows])


#: Blocks along the contiguous dimension, and across it.
ORIENTATIONS = {"rows": [1], "columns": [0]}


def quantile(ordered: list[float], p: float) -> float:
    """The value below which a share p of the sorted ones lies."""
    return ordered[int(p * (len(ordered) - 1))]


def show(rows: list[list[object]]) -> None:
    """Print a table; ratios are of the 20th percentiles."""
    shown = ["provider", "format", "method", "dtype", "orientation", "p20_ns", "p50_ns", "p80_ns"]
    table = Table(*shown, "ratio_to_clone", title="ns per element")
    for row in rows:
        record = dict(zip(FIELDS, row, strict=True))
        table.add_row(*(str(record[name]) for name in (*shown, "ratio_to_clone")))
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
