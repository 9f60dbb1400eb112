"""One arm of the study: a network trained under one policy or schedule, once per seed.

The network and its loss are compiled once and serve all seeds: parameters are drawn anew in place.
Equal seeds start from equal parameters and see equal batches in every arm.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import nmcompile
from benchmarks.accuracy.data import digest_of
from benchmarks.accuracy.gradients import Signal, signals
from benchmarks.accuracy.models import Logits, Objective, cross_entropy, initialise

#: The seed of batches that no run trains on in this order.
OTHER = 10_000


@dataclass(frozen=True)
class Setting:
    """How a network is trained, the same in every arm.

    Attributes:
        build: makes the network for the data.
        load: reads the data.
        steps: number of updates.
        rate: highest learning rate (AdamW); linear warm-up over the first tenth, then cosine to 0.
        decay: weight decay, of matrices only.
        clip: largest norm of the gradient.
        probes: number of batches on which pruned gradients are compared with dense ones, seven
            or eight times in a run; 0 compares none.
    """

    build: Callable[[Any], nn.Module]
    load: Callable[..., Any]
    steps: int
    rate: float
    decay: float = 0.05
    clip: float = 5.0
    probes: int = 0

    def digest(self, steps: int) -> str:
        """Equal digests train alike: data, architecture, steps and hyperparameters.

        Comparing gradients changes nothing of the training, and is not in it.
        """
        data = self.load()
        net = self.build(data)
        shapes = [(name, list(p.shape)) for name, p in net.named_parameters()]
        numbers = (steps, self.rate, self.decay, self.clip)
        return digest_of(data.digest(), str(net), shapes, numbers)


class Validation(NamedTuple):
    """Of one set of parameters: the loss in nats, the share of correct predictions, and the mean
    of all logits, to which softmax is blind.
    """

    loss: float
    accuracy: float
    logit_mean: float


class Point(NamedTuple):
    """A place on the curves: the recent training loss, and what was measured there."""

    step: int
    train_loss: float
    validation: Validation | None
    signals: list[Signal]


@dataclass
class Run:
    """What one seed of one arm gave.

    A pruned forward product is pruned in validation too; ``without_masks`` is the validation of
    the same parameters without. A share of the FLOPs is the mean over the steps.
    """

    network: str
    arm: str
    seed: int
    steps: int
    train_loss: float
    validation: Validation
    without_masks: Validation
    seconds: float
    compile_seconds: float
    pruned_share: float
    skipped_share: float
    curve: list[Point] = field(default_factory=list)


class Arm:
    """A network compiled under the policies of a schedule."""

    def __init__(
        self, setting: Setting, network: str, name: str, phases: Mapping[int, str], steps: int
    ) -> None:
        torch._dynamo.reset()
        self.setting, self.network, self.name, self.steps = setting, network, name, steps
        self.data = setting.load()
        self.net = setting.build(self.data)
        initialise(self.net, seed=0)
        start = time.perf_counter()
        self.schedules = [nmcompile.Schedule(Objective(self.net), phases, dynamic=False)]
        self.objective = self.schedules[0].model
        self.objective.train()
        self.schedules[0].warm_up(*next(self.data.batches(seed=0)))
        reports = {at: r for at, r in self.schedules[0].reports.items() if at < steps}
        lengths = [after - before for before, after in pairwise([*reports, steps])]
        self.pruned_share, self.skipped_share = (
            sum(
                n * getattr(r.totals, share) for n, r in zip(lengths, reports.values(), strict=True)
            )
            / steps
            for share in ("pruned_share", "skipped_share")
        )
        self.forward = self.net
        sites = [site for report in reports.values() for site in report.sites if site.pruned]
        if any(site.role == "fprop" for site in sites):
            # Validation is rare: without generated C++ it compiles in a fraction of the time.
            options = {"fallback_by_default": True}
            masked = nmcompile.Schedule(Logits(self.net), phases, dynamic=False, options=options)
            self.schedules.append(masked)
            self.forward = masked.model
            masked.model.eval()
            with torch.no_grad():
                masked.warm_up(next(iter(self.data.validation()))[0])
        self.probes = []
        if sites and self.forward is self.net:
            self.probes = list(islice(self.data.batches(OTHER), setting.probes))
        self.compile_seconds = time.perf_counter() - start

    def run(self, seed: int, watch: Callable[[int, float], None]) -> Run:
        """Train from the parameters of ``seed``; ``watch(step, loss)`` is called at each step."""
        steps = self.steps
        initialise(self.net, seed)
        optimizer, rates = self._optimizer()
        often = _marks(steps, 24)
        rarely = {often[-1], *_marks(steps, 6)}
        losses: list[float] = []
        curve: list[Point] = []
        seconds = 0.0
        for step, (x, y) in enumerate(islice(self.data.batches(seed), steps), 1):
            for schedule in self.schedules:
                schedule.step(at=step - 1)
            start = time.perf_counter()
            losses.append(self._update(x, y))
            nn.utils.clip_grad_norm_(self.net.parameters(), self.setting.clip)
            optimizer.step()
            rates.step()
            seconds += time.perf_counter() - start
            watch(step, losses[-1])
            if step in often or step in rarely:
                at = self._validate(self.forward) if step in rarely else None
                found = self._compared() if step in rarely and self.probes else []
                curve.append(Point(step, _mean_of_last(losses, steps // 24), at, found))
        last = curve[-1].validation
        assert last is not None  # the last step is validated
        without = last if self.forward is self.net else self._validate(self.net)
        return Run(
            network=self.network,
            arm=self.name,
            seed=seed,
            steps=steps,
            train_loss=_mean_of_last(losses, steps // 10),
            validation=last,
            without_masks=without,
            seconds=seconds,
            compile_seconds=self.compile_seconds,
            pruned_share=self.pruned_share,
            skipped_share=self.skipped_share,
            curve=curve,
        )

    def _compared(self) -> list[Signal]:
        """What pruning does to the gradients of the parameters as they are now."""
        self.objective.train()
        return signals(Objective(self.net), self.objective, self.probes)

    def _update(self, x: Tensor, y: Tensor) -> float:
        """Set the gradients of one batch and return its loss."""
        self.objective.train()
        self.net.zero_grad()
        loss = self.objective(x, y)
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def _validate(self, forward: nn.Module) -> Validation:
        """Means over the validation set."""
        forward.eval()
        found = []
        for x, y in self.data.validation():
            logits = forward(x)
            loss = cross_entropy(logits, y).item()
            hits = (logits.argmax(-1) == y).float().mean().item()
            found.append((loss, hits, logits.mean().item()))
        return Validation(*map(statistics.fmean, zip(*found, strict=True)))

    def _optimizer(self) -> tuple[torch.optim.Optimizer, _Schedule]:
        parameters = list(self.net.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.setting.decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, self.setting.rate, betas=(0.9, 0.98))
        warm_up, steps = max(1, self.steps // 10), self.steps

        def factor(step: int) -> float:
            rest = max(0, step - warm_up) / max(1, steps - warm_up)
            return min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * rest)) / 2

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


_Schedule = torch.optim.lr_scheduler.LRScheduler


def _marks(steps: int, count: int) -> range:
    """About ``count`` evenly spaced steps, the last one included."""
    every = max(1, steps // count)
    return range(steps, 0, -every)


def _mean_of_last(losses: list[float], count: int) -> float:
    return statistics.fmean(losses[-max(1, count) :])
