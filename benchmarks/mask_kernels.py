"""Mask kernels on the CPU: time per element beside a copy of the tensor.

    python -m benchmarks.mask_kernels --out benchmarks/results/mask_kernels_cpu.csv

Providers: ``nm`` (the compiled kernel), ``reference`` (plain PyTorch), ``torch.compile`` (of the
reference), ``clone`` (the floor: read and write once). Providers of one shape take turns, so that
a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from benchmarks import records
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
#: What a row is of; a run replaces the rows of its own.
KEY = (
    "kernel",
    "provider",
    "format",
    "method",
    "dtype",
    "orientation",
    "rows",
    "columns",
    "threads",
)
ORIGIN = ("torch", "machine", "nmcompile", "commit", "time")


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--slow", action="store_true", help="the reference at every format")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    rows: list[dict[str, object]] = []
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
                    of = (str(dtype).removeprefix("torch."), name, args.size, args.size)
                    key = ("prune", provider, fmt, method, *of, args.threads)
                    rows.append(dict(zip(KEY, key, strict=True)) | _figures(t, floor, x.numel()))
    show(rows)
    if args.out:
        records.replace(args.out, rows, KEY)


#: Blocks along the contiguous dimension, and across it.
ORIENTATIONS = {"rows": [1], "columns": [0]}


def quantile(ordered: list[float], p: float) -> float:
    """The value below which a share p of the sorted ones lies."""
    return ordered[int(p * (len(ordered) - 1))]


def _figures(times: list[float], floor: float, elements: int) -> dict[str, object]:
    """Nanoseconds per element, and the ratio to ``floor``."""
    parts = {f"p{p}_ns": quantile(times, p / 100) for p in (20, 50, 80)}
    figures = {name: f"{1e9 * value / elements:.4f}" for name, value in parts.items()}
    ratio = f"{parts['p20_ns'] / floor:.2f}"
    return {**figures, "ratio_to_clone": ratio, **records.origin(*ORIGIN)}


def show(rows: list[dict[str, object]]) -> None:
    """Print a table; ratios are of the 20th percentiles."""
    shown = ["provider", "format", "method", "dtype", "orientation", "p20_ns", "p50_ns", "p80_ns"]
    table = Table(*shown, "ratio_to_clone", title="ns per element")
    for row in rows:
        table.add_row(*(str(row[name]) for name in (*shown, "ratio_to_clone")))
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
