"""One arm of the study: a network trained under one policy, once per seed.

The network and its loss are compiled once and serve all seeds: parameters are drawn anew in place.
Equal seeds start from equal parameters and see equal batches in every arm.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

import nmcompile
from benchmarks.accuracy.data import Data
from benchmarks.accuracy.models import Logits, Objective, cross_entropy, initialise


@dataclass(frozen=True)
class Setting:
    """How a network is trained, the same in every arm.

    Attributes:
        build: makes the network.
        load: reads its data.
        steps: number of updates.
        rate: highest learning rate (AdamW); linear warm-up over the first tenth, then cosine to 0.
        decay: weight decay, of matrices only.
        clip: largest norm of the gradient.
    """

    build: Callable[[], nn.Module]
    load: Callable[[], Data]
    steps: int
    rate: float
    decay: float = 0.05
    clip: float = 5.0


@dataclass
class Run:
    """What one seed of one arm gave.

    ``accuracy`` is a share of correct predictions; losses are in nats. A pruned forward product is
    pruned in validation too; ``dense_*`` is the validation of the same parameters without masks.
    """

    network: str
    arm: str
    seed: int
    steps: int
    train_loss: float
    validation_loss: float
    accuracy: float
    dense_validation_loss: float
    dense_accuracy: float
    seconds: float
    compile_seconds: float
    pruned_share: float
    skipped_share: float
    curve: list[tuple[int, float, float | None, float | None]] = field(default_factory=list)


class Arm:
    """A network compiled under a policy."""

    def __init__(self, setting: Setting, network: str, name: str, policy: str) -> None:
        torch._dynamo.reset()
        self.setting, self.network, self.name = setting, network, name
        self.data = setting.load()
        self.net = setting.build()
        initialise(self.net, seed=0)
        self.objective = _compiled(Objective(self.net), policy)
        start = time.perf_counter()
        self._update(*next(self.data.batches(seed=0)))
        report = nmcompile.last_report()
        self.totals = report.totals
        self.forward: Callable[[Tensor], Tensor] = self.net
        if any(site.pruned and site.role == "fprop" for site in report.sites):
            # Validation is rare: without generated C++ it compiles in a fraction of the time.
            self.forward = _compiled(Logits(self.net), policy, fallback_by_default=True)
            self._validate(self.forward)
        self.compile_seconds = time.perf_counter() - start

    def run(self, seed: int, steps: int | None, watch: Callable[[int, float], None]) -> Run:
        """Train from the parameters of ``seed``; ``watch(step, loss)`` is called at each step."""
        steps = steps or self.setting.steps
        initialise(self.net, seed)
        optimizer, schedule = self._optimizer(steps)
        batches = islice(self.data.batches(seed), steps)
        losses: list[float] = []
        curve: list[tuple[int, float, float | None, float | None]] = []
        seconds = 0.0
        for step, (x, y) in enumerate(batches, 1):
            start = time.perf_counter()
            losses.append(self._update(x, y))
            nn.utils.clip_grad_norm_(self.net.parameters(), self.setting.clip)
            optimizer.step()
            schedule.step()
            seconds += time.perf_counter() - start
            watch(step, losses[-1])
            if step in _marks(steps, 24):
                at = self._validate(self.forward) if step in _marks(steps, 6) else (None, None)
                curve.append((step, _mean_of_last(losses, steps // 24), *at))
        loss, accuracy = curve[-1][2:]
        assert loss is not None  # the last step is validated
        assert accuracy is not None
        dense_loss, dense_accuracy = loss, accuracy
        if self.forward is not self.net:
            dense_loss, dense_accuracy = self._validate(self.net)
        return Run(
            network=self.network,
            arm=self.name,
            seed=seed,
            steps=steps,
            train_loss=_mean_of_last(losses, steps // 10),
            validation_loss=loss,
            accuracy=accuracy,
            dense_validation_loss=dense_loss,
            dense_accuracy=dense_accuracy,
            seconds=seconds,
            compile_seconds=self.compile_seconds,
            pruned_share=self.totals.pruned_share,
            skipped_share=self.totals.skipped_share,
            curve=curve,
        )

    def _update(self, x: Tensor, y: Tensor) -> float:
        """Set the gradients of one batch and return its loss."""
        self.net.train()
        self.net.zero_grad()
        loss = self.objective(x, y)
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def _validate(self, forward: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """(mean loss, share of correct predictions) of the validation set."""
        self.net.eval()
        losses, hits = [], []
        for x, y in self.data.validation():
            logits = forward(x)
            losses.append(cross_entropy(logits, y).item())
            hits.append((logits.argmax(-1) == y).float().mean().item())
        return statistics.fmean(losses), statistics.fmean(hits)

    def _optimizer(self, steps: int) -> tuple[torch.optim.Optimizer, _Schedule]:
        parameters = list(self.net.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.setting.decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, self.setting.rate, betas=(0.9, 0.98))
        warm_up = max(1, steps // 10)

        def factor(step: int) -> float:
            rest = max(0, step - warm_up) / max(1, steps - warm_up)
            return min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * rest)) / 2

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


_Schedule = torch.optim.lr_scheduler.LRScheduler


def _compiled(module: nn.Module, policy: str, **options: bool) -> Callable[..., Tensor]:
    options = {"policy": policy, **options}
    return torch.compile(module, backend="nm_sparse", options=options, dynamic=False)


def _marks(steps: int, count: int) -> range:
    """About ``count`` evenly spaced steps, the last one included."""
    every = max(1, steps // count)
    return range(steps, 0, -every)


def _mean_of_last(losses: list[float], count: int) -> float:
    return statistics.fmean(losses[-max(1, count) :])
