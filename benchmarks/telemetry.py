"""What telemetry costs: a step of training with a sample, and one without, against no telemetry.

    python -m benchmarks.telemetry                  # into benchmarks/results/telemetry.csv
    python -m benchmarks.telemetry --rounds 40 --only gpt

Each round runs two steps of a model without telemetry and two of the same one with it, of which
the first is sampled, from equal seeds; which model comes first alternates. A ratio is of times of
one round. ``every=100`` is what a sample adds to a step, spread over 100 of them: all others run
the code that they run without telemetry. The losses of both are compared, bit for bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import nmcompile
from benchmarks import gpt, records, vision
from benchmarks.table import Row, percentiles, show, write_csv
from benchmarks.trainer import Trainer, Workload

OUT = records.RESULTS / "telemetry.csv"
NETWORKS: dict[str, Workload] = {"gpt": gpt.FULL, **vision.FULL}
QUICK: dict[str, Workload] = {"gpt": gpt.QUICK, **vision.QUICK}
EVERY = 100


def measure(workload: Workload, policy: str, rounds: int) -> tuple[dict[str, list[float]], bool]:
    """Seconds of steps ("without", "sampled", "other"), and whether all losses are equal."""
    plain, metered = Trainer(policy, workload), Trainer(policy, workload)
    meter = nmcompile.telemetry(metered.compiled, every=2, to=lambda rows: None)
    times: dict[str, list[float]] = {"without": [], "sampled": [], "other": []}
    equal = True

    def steps(trainer: Trainer, names: Sequence[str], number: int) -> list[float]:
        losses = []
        for i, name in enumerate(names):
            torch.manual_seed(2 * number + i)
            start = time.perf_counter()
            losses.append(trainer.step())
            if trainer is metered:
                meter.step()
            times[name].append(time.perf_counter() - start)
        return losses

    for number in range(rounds + 1):
        runs = [(plain, ("without", "without")), (metered, ("sampled", "other"))]
        losses = [steps(*run, number) for run in runs[:: (-1) ** number]]
        equal = equal and losses[0] == losses[1]
        if number == 0:  # which has compiled
            for found in times.values():
                found.clear()
    pairs = zip(times["without"][::2], times["without"][1::2], strict=True)
    times["without"] = [(a + b) / 2 for a, b in pairs]
    return times, equal


def rows_of(name: str, policy: str, workload: Workload, rounds: int) -> list[Row]:
    """The figures of one network."""
    times, equal = measure(workload, policy, rounds)
    sampled, other, plain = (times[kind] for kind in ("sampled", "other", "without"))
    about = {"kernel": "telemetry", "mode": f"{name} {policy}", "x": str(workload.depth)}
    about["config"] = str(workload)

    def row(provider: str, metric: str, values: Sequence[float], target: str = "") -> Row:
        return Row(provider=provider, metric=metric, target=target, **percentiles(values), **about)

    def over(values: Sequence[float]) -> list[float]:
        return [a / b for a, b in zip(values, plain, strict=True)]

    extra = [s - o for s, o in zip(sampled, other, strict=True)]
    return [
        *(row(kind, "step (ms)", [1000 * t for t in found]) for kind, found in times.items()),
        *(row(kind, "over without", over(times[kind])) for kind in ("sampled", "other")),
        row(f"every={EVERY}", "over without", [1 + e / EVERY for e in over(extra)], "<=1.01"),
        row("losses", "equal (1 = all)", [float(equal)], ">=1"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rounds", type=int, default=20, help="samples of each step")
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, by commas")
    parser.add_argument("--policies", default="full", help="recipes, by commas")
    parser.add_argument("--quick", action="store_true", help="small, figures mean nothing")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in args.only.split(","):
        for policy in args.policies.split(","):
            torch._dynamo.reset()
            workload = (QUICK if args.quick else NETWORKS)[name]
            rows += rows_of(name, policy, workload, args.rounds)
            write_csv(args.out, rows)  # what is finished is kept
    show(rows, Console(width=140))
    judged = [row for row in rows if not args.quick or row.provider == "losses"]
    if any(row.missed for row in judged):
        raise SystemExit("a target is missed")


if __name__ == "__main__":
    main()
