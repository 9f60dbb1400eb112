"""The sections of the training-step benchmark; each yields rows.

Variants are measured interleaved (A B C, B C A, ...), so that a slow minute of the machine falls
on all of them. A ratio is the median over rounds of the variant's time over Inductor's time in
the same round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import linear_regression, median

import torch
from rich.progress import Progress

from benchmarks.predictions import PREDICTIONS, TARGETS, Headline
from benchmarks.table import Row, percentiles
from benchmarks.trainer import Trainer, Workload
from benchmarks.vision import Images
from benchmarks.worker import measure

Figures = dict[str, float]
Samples = dict[str, list[float]]  # of one metric, by variant


@dataclass(frozen=True)
class Setup:
    """What all sections share."""

    shape: Workload
    depths: tuple[int, ...]
    rounds: int
    progress: Progress
    networks: Mapping[str, Images]
    recipes: tuple[str, ...] = ("full", "activations", "gradients", "weights", "dense")
    quick: bool = False  # small shapes, whose figures mean nothing

    def row(self, mode: str, provider: str, metric: str, samples: Sequence[float], **rest: object):
        """A row, with its target and prediction (of the main depth alone)."""
        x = str(rest.pop("x", self.shape.depth))
        key = Headline(mode, provider, metric.partition(" (")[0])
        main = x == str(self.shape.depth)
        judged = main and (not self.quick or mode == "bitwise")
        bound = TARGETS.get(key) if judged else None
        sign = ">=" if key.metric in ("speedup", "equal") else "<="
        return Row(
            kernel="training_step",
            provider=provider,
            mode=mode,
            metric=metric,
            x=x,
            target="" if bound is None else f"{sign}{bound:g}",
            prediction=PREDICTIONS.get(key) if main else None,
            config=str(self.shape),
            **percentiles(samples),
            **rest,
        )

    def interleave(
        self, title: str, names: Sequence[str], rounds: int, run: Callable[[str], Figures]
    ) -> dict[str, Samples]:
        """``rounds`` samples of every figure and name, each round starting one name later."""
        samples: dict[str, Samples] = {}
        task = self.progress.add_task(title, total=rounds * len(names))
        for start in range(rounds):
            for i in range(len(names)):
                name = names[(start + i) % len(names)]
                self.progress.update(task, description=f"{title}: {name}")
                for metric, value in run(name).items():
                    samples.setdefault(metric, {}).setdefault(name, []).append(value)
                self.progress.advance(task)
        self.progress.update(task, description=title)
        return samples


def _ratios(setup: Setup, mode: str, samples: dict[str, Samples], **rest: object) -> Iterator[Row]:
    """A row for every metric and variant."""
    for metric, by_name in samples.items():
        for name, values in by_name.items():
            over = median(a / b for a, b in zip(values, by_name["inductor"], strict=True))
            yield setup.row(mode, name, metric, values, ratio_to_inductor=over, **rest)


def _timed_steps(setup: Setup, title: str, names: Sequence[str], rounds: int) -> dict[str, Samples]:
    trainers: dict[str, Trainer] = {}
    task = setup.progress.add_task(f"{title}: compile and warm up", total=len(names))
    for name in names:
        trainers[name] = Trainer(name, setup.shape)
        for _ in range(3):
            trainers[name].step()
        setup.progress.advance(task)

    def run(name: str) -> Figures:
        start, cpu_start = time.perf_counter(), time.process_time()
        trainers[name].step()
        cpu = time.process_time() - cpu_start
        return {"time (s)": time.perf_counter() - start, "cpu time (s)": cpu}

    return setup.interleave(title, names, rounds, run)


def step(setup: Setup) -> Iterator[Row]:
    """Seconds of a step of every recipe."""
    names = ("inductor", *setup.recipes)
    samples = _timed_steps(setup, "step", names, setup.rounds)
    yield from _ratios(setup, "step", samples)


def network(name: str) -> Callable[[Setup], Iterator[Row]]:
    """The section that measures a step of one of the other networks."""

    def section(setup: Setup) -> Iterator[Row]:
        here = replace(setup, shape=setup.networks[name])
        samples = _timed_steps(here, name, ("inductor", "full"), setup.rounds)
        yield from _ratios(here, name, samples)

    return section


def eager(setup: Setup) -> Iterator[Row]:
    """Seconds of a step of the masks in eager hooks, and how much faster ``full`` is."""
    baselines = ("eager-hooks", "eager-compare", "eager-hooks+inductor")
    names = ("inductor", "full", "eager-dense", *baselines)
    samples = _timed_steps(setup, "eager", names, max(3, setup.rounds // 3))
    yield from _ratios(setup, "eager", samples)
    for name in baselines:
        times = samples["time (s)"]
        gains = [a / b for a, b in zip(times[name], times["full"], strict=True)]
        yield setup.row("eager", name, "speedup (of full over it)", gains)


def compilation(setup: Setup) -> Iterator[Row]:
    """Seconds of the first step in a fresh process with an empty cache, by depth."""
    names = ("inductor", "full")
    by_depth: list[dict[str, Samples]] = []
    for depth in setup.depths:
        shape = replace(setup.shape, depth=depth)
        samples = setup.interleave(
            f"compile, depth {depth}",
            names,
            min(setup.rounds, 3 if depth <= setup.shape.depth else 2),
            lambda name, shape=shape: measure("compile", name, shape),
        )
        by_depth.append(samples)
        yield from _ratios(setup, "compile", samples, x=depth)
    if len(setup.depths) > 1:
        yield from _growth(setup, by_depth)


def _growth(setup: Setup, by_depth: Sequence[dict[str, Samples]]) -> Iterator[Row]:
    """Slopes over depth. Wall time is too noisy on a busy machine: CPU time is what is judged."""
    for metric in by_depth[0]:
        slopes = {
            name: linear_regression(
                setup.depths, [median(samples[metric][name]) for samples in by_depth]
            ).slope
            for name in by_depth[0][metric]
        }
        for name, slope in slopes.items():
            # Noise can make a slope negative; its ratio means nothing then.
            over = slope / slopes["inductor"] if min(slopes.values()) > 0 else math.nan
            key = f"growth per block of {metric}"
            yield setup.row("compile", name, key, [slope], ratio_to_inductor=over)


def memory(setup: Setup) -> Iterator[Row]:
    """MiB of a step, in a fresh process for each variant; see ``worker.memory``."""
    names = ("inductor", *setup.recipes)
    samples = setup.interleave(
        "memory", names, 1, lambda name: measure("memory", name, setup.shape)
    )
    yield from _ratios(setup, "memory", samples)


def bitwise(setup: Setup) -> Iterator[Row]:
    """Whether ``dense`` has the losses and gradients of Inductor, bit for bit, for three steps."""
    trainers = {name: Trainer(name, setup.shape) for name in ("inductor", "dense")}
    differences = 0
    for _ in range(3):
        values = []
        for trainer in trainers.values():
            loss = trainer.forward()
            loss.backward()
            gradients = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
            values.append([loss.detach(), *gradients])
            trainer.update()
        pairs = zip(*values, strict=True)
        differences += sum(not torch.equal(expected, got) for expected, got in pairs)
    yield setup.row("bitwise", "dense", "equal (1 = all tensors)", [float(differences == 0)])
