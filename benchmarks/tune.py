"""Whether a policy by measurement keeps its promise, on text that neither training nor tuning saw.

    python -m benchmarks.tune                                    # 3 seeds, into benchmarks/results/
    python -m benchmarks.tune --seeds 1 --steps 60 --out /tmp/quick.csv

The GPT of the accuracy study is trained dense, tuned on batches of its own training text, and
trained again from the same parameters under ``full`` and under the tuned policy. Three claims:

    lost         the tuned policy loses at most a quarter of what ``full`` loses: held-out loss
                 less that of dense, mean over seeds
    rank forward Spearman's correlation of the cost of each forward product with the increase of the
                 held-out loss where it alone is pruned, in the model that was tuned
    rank noise   the same of the noise of each gradient with the variance that it alone adds
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from scipy.stats import spearmanr
from torch import Tensor, nn

import nmcompile
from benchmarks import records
from benchmarks.accuracy.data import Data
from benchmarks.accuracy.models import Objective
from benchmarks.accuracy.studies import STUDIES
from benchmarks.accuracy.training import OTHER, Arm
from nmcompile.dry_run import fresh
from nmcompile.gemm import OperandKind, Role
from nmcompile.tuning.products import Choice, Key
from nmcompile.tuning.scores import variance
from nmcompile.tuning.session import Session

RESULTS = records.RESULTS / "tune.csv"
SETTING = STUDIES["text"].networks["gpt"]
#: Of the tuned policy's loss over that of ``full``.
MOST = 0.25
ACTIVATION = Choice(OperandKind.ACTIVATION, "2:4")
GRADIENT = Choice(OperandKind.GRADIENT, "2:4")
Batches = list[tuple[Tensor, Tensor]]


def trained(name: str, policy: str, seeds: int, steps: int) -> tuple[list[float], Arm]:
    """Held-out losses, one for each seed, and the network of the last one."""
    arm = Arm(SETTING, "gpt", name, {0: policy}, steps)
    runs = [arm.run(seed, lambda step, loss: None) for seed in range(seeds)]
    losses = [run.validation.loss for run in runs]
    print(f"{name}: held-out loss {' '.join(f'{x:.4f}' for x in losses)}", file=sys.stderr)
    return losses, arm


def drawn(data: Data, count: int) -> Batches:
    """Batches of the training text that no seed trains on."""
    return list(itertools.islice(data.batches(OTHER), count))


def rank_forward(net: nn.Module, tuned: nmcompile.Tuned, held_out: Batches) -> float:
    """Costs of forward products against what pruning each alone does to the held-out loss."""
    session = Session(fresh(Objective(net)), held_out, [ACTIVATION], None)

    def loss(applied: dict[Key, Choice]) -> float:
        return statistics.fmean(
            session.loss(n, applied).item() for n in range(len(session.batches))
        )

    dense = loss({})
    pairs = [
        (row.costs[0].loss, loss({row.key: ACTIVATION}) - dense)
        for row in tuned.rows
        if row.role is Role.FPROP and row.costs
    ]
    return float(spearmanr(*zip(*pairs, strict=True))[0])


def rank_noise(net: nn.Module, tuned: nmcompile.Tuned, batches: Batches) -> float:
    """Noise of gradients against the variance that pruning each alone adds to all weights'."""
    model = Objective(net)
    session = Session(fresh(model), batches, [GRADIENT], None)
    session.measure(None, lambda: None)
    measured, names = session.measured, dict(model.named_parameters())
    own = {
        f"{slot.key.module}.weight": variance(
            s.squares, float(s.total.square().sum()), len(batches)
        )
        for slot, s in measured.sums.signals.items()
        if slot.key.role is Role.WGRAD and s.total is not None
    }
    weights = [names[name] for name in own]

    def gradients(number: int, applied: dict[Key, Choice]) -> Sequence[Tensor]:
        loss = session.loss(number)
        measured.applied = applied
        try:
            return torch.autograd.grad(loss, weights)
        finally:
            measured.applied = {}

    def added(key: Key) -> float:
        total = 0.0
        for number, before in enumerate(dense):
            after = gradients(number, {key: GRADIENT})
            for w, a, b, v in zip(weights, after, before, own.values(), strict=True):
                total += w.numel() * (a - b).square().sum().item() / v
        return total

    dense = [gradients(n, {}) for n in range(len(batches))]
    rows = [row for row in tuned.rows if row.role is not Role.FPROP and row.costs]
    pairs = [(row.costs[0].noise, added(row.key)) for row in rows]
    return float(spearmanr(*zip(*pairs, strict=True))[0])


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each policy.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Updates of each.")] = 500,
    flops: Annotated[float, typer.Option(help="Share of the FLOPs to prune.")] = 0.5,
    batches: Annotated[int, typer.Option(min=2, help="To tune on.")] = 8,
    out: Annotated[Path, typer.Option(help="CSV file.")] = RESULTS,
    check: Annotated[bool, typer.Option("--check", help="Fail if a claim does not hold.")] = False,
) -> None:
    """Train, tune, train again, and compare on held-out text."""
    torch.set_num_threads(1)
    losses: dict[str, list[float]] = {}
    losses["dense"], arm = trained("dense", "dense", seeds, steps)
    start = time.perf_counter()
    tuned = nmcompile.tune(Objective(arm.net), drawn(arm.data, batches), flops=flops)
    seconds = time.perf_counter() - start
    print(tuned.to_toml(), file=sys.stderr)
    held_out = list(arm.data.validation())
    numbers: list[tuple[str, str, Any]] = [
        ("passes", "tuned", tuned.passes),
        ("tune (s)", "tuned", seconds),
        ("terms", "tuned", tuned.terms),
        ("pruned share", "tuned", tuned.pruned_share),
        ("expected loss, forward", "tuned", tuned.expected_loss),
        ("measured loss, forward", "tuned", tuned.measured_loss),
        ("noise", "tuned", tuned.noise),
        ("rank forward", "tuned", rank_forward(arm.net, tuned, held_out)),
        ("rank noise", "tuned", rank_noise(arm.net, tuned, drawn(arm.data, 4))),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuned.toml"
        tuned.to_toml(path)
        for name, policy in (("full", "full"), ("tuned", str(path))):
            losses[name], arm = trained(name, policy, seeds, steps)
            assert name != "tuned" or abs(arm.pruned_share - tuned.pruned_share) < 1e-3
    lost = {
        name: statistics.fmean(losses[name]) - statistics.fmean(losses["dense"])
        for name in ("full", "tuned")
    }
    numbers += [("lost", name, value) for name, value in lost.items()]
    numbers.append(("lost over full", "tuned", lost["tuned"] / lost["full"]))
    rows = [
        {"metric": "held-out loss", "arm": name, "seed": seed, "value": value}
        for name, values in losses.items()
        for seed, value in enumerate(values)
    ]
    rows += [{"metric": m, "arm": name, "seed": "", "value": v} for m, name, v in numbers]
    about = {"network": "gpt", "steps": steps, "flops": flops, "batches": batches}
    where = records.origin("machine", "python", "torch", "nmcompile", "commit", "time")
    records.write(out, [{**about, **row, **where} for row in rows])
    print(f"{out}: tuned loses {lost['tuned']:.4f}, full {lost['full']:.4f}", file=sys.stderr)
    if check and not lost["tuned"] <= MOST * lost["full"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
