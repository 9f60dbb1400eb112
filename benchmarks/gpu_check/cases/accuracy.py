"""Section ``accuracy``: a GPT of 85 million parameters trained on real sparse tensor cores.

The text is every Python file that is installed, as bytes, some files held out whole. All arms start
from equal parameters, see equal batches, and run in one ``nmcompile.Schedule``: float32 parameters,
bfloat16 autocast, AdamW. What the policy prunes runs sparse wherever the library takes it, whether
that gains or not: the question here is what is learned.
"""

from __future__ import annotations

import math
import random
import sysconfig
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import nmcompile
from benchmarks.accuracy.data import Text
from benchmarks.gpu_check.cases.networks import GPT2, GPT2Shape
from benchmarks.gpu_check.events import Case, Session
from nmcompile import Policy

SHAPE = GPT2Shape(width=768, heads=12, depth=12, vocabulary=256, batch=32, context=1024)
REHEARSED = GPT2Shape(width=32, heads=2, depth=1, vocabulary=256, batch=2, context=16)
BITS = "held-out bits per byte"
_STEPS, _WARM_UP, _RATE = 600, 50, 6e-4
_TEXT_BYTES = 60_000_000
_BATCHES = 8  # of the held-out files
#: An arm's policies by the share of the steps at which each begins; what is left of time decides
#: how many arms there are.
ARMS: dict[str, dict[float, str]] = {
    "dense": {0.0: "dense"},
    "full": {0.0: "full"},
    "full, then dense": {0.0: "full", 0.75: "dense"},
    "mse-gradients": {0.0: "mse-gradients"},
}


def cases(rehearse: bool) -> list[Case]:
    """One case: its arms share what is compiled."""
    return [Case("accuracy", "gpt", train, 5 if rehearse else 60, 400)]


class Held(NamedTuple):
    """Bits per byte of the held-out files, as the policy runs the forward, and without masks."""

    masked: float
    dense: float


def train(session: Session) -> None:
    """Each arm: rows of its held-out loss and its step time; its curve as a note."""
    rehearsal, device = session.device.rehearsal, session.device.name
    shape = REHEARSED if rehearsal else SHAPE
    with torch.device(device):
        model = GPT2(shape)
    text = Text.load(shape.batch, shape.context, _files(100_000 if rehearsal else _TEXT_BYTES))
    about = f"{len(text.train)} bytes to train on, {len(text.held_out)} of files held out"
    session.note("text", f"Python files that are installed: {about}")
    names = list(dict.fromkeys(name for arm in ARMS.values() for name in arm.values()))
    phases = {k: _policy(name, rehearsal) for k, name in enumerate(names)}
    options = {"fallback_by_default": True} if rehearsal else {}  # no C++ to compile
    schedule = nmcompile.Schedule(model, phases, dynamic=False, options=options)
    steps, slowest = 4 if rehearsal else _STEPS, 0.0
    for arm, shares in ARMS.items():
        if session.left() < 1.2 * slowest:
            session.note(f"{arm}: left out", f"{session.left():.0f} s are left")
            continue
        start = time.monotonic()
        begin = {share * steps: names.index(policy) for share, policy in shares.items()}
        _Run(session, schedule, model, text, begin).train(arm, steps)
        slowest = max(slowest, time.monotonic() - start)


class _Run:
    """One arm; the parameters are drawn anew in place, so that compiled code stays valid."""

    def __init__(
        self,
        session: Session,
        schedule: nmcompile.Schedule,
        model: nn.Module,
        text: Text,
        phases: dict[float, int],
    ) -> None:
        self.session, self.schedule, self.model = session, schedule, model
        self.text, self.phases, self.device = text, phases, session.device.name
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(model.positions)

    def train(self, arm: str, steps: int) -> None:
        """Train and report."""
        session, cuda = self.session, not self.session.device.rehearsal
        optimizer = torch.optim.AdamW(
            self.model.parameters(), _RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=cuda
        )
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        curve: list[Tensor] = []
        times: list[float] = []
        for step, batch in enumerate(islice(self.text.batches(0), steps)):
            self._choose(step)
            start = time.perf_counter()
            loss = self._loss(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad(set_to_none=True)
            curve.append(loss.detach())
            if step % 20 == 19 or step == steps - 1:
                session.device.synchronize()
            times.append(time.perf_counter() - start)
        losses = [loss.item() / math.log(2) for loss in curve]
        some = losses[:: max(1, steps // 60)]
        session.note(f"{arm}: training curve", [round(loss, 4) for loss in some])
        held = self._held_out()
        place = {"x": "gpt", "config": f"{steps} steps"}
        session.row(arm, BITS, [held.masked], **place)
        session.row(arm, f"{BITS}, without masks", [held.dense], **place)
        last = losses[-max(1, steps // 10) :]
        session.row(arm, "training bits per byte", [sum(last) / len(last)], **place)
        steady = times[steps // 3 :]
        session.row(arm, "step (ms)", [1e3 * sum(steady) / len(steady)], **place)
        # Some arms may fail: what they learn is what is asked.
        session.check(f"{arm}: losses are numbers", not any(map(math.isnan, losses)), str(held))

    def _choose(self, step: int) -> None:
        begun = [at for at in self.phases if at <= step]
        self.schedule.step(at=self.phases[max(begun)])

    def _loss(self, batch: tuple[Tensor, Tensor], compiled: bool = True) -> Tensor:
        x, y = (part.to(self.device, non_blocking=True) for part in batch)
        with torch.autocast(self.device, torch.bfloat16):
            loss: Tensor = (self.model if compiled else self.model.forward)(x, y)
        return loss

    @torch.no_grad()
    def _dense(self, batch: tuple[Tensor, Tensor]) -> float:
        return self._loss(batch, compiled=False).item()

    def _held_out(self) -> Held:
        own = replace(self.text, train=self.text.held_out)
        batches = list(islice(own.batches(1), _BATCHES))
        # With gradients, so that the graph is the one that trained; nobody asks for a backward.
        masked = sum(self._loss(batch).item() for batch in batches)
        dense = sum(map(self._dense, batches))
        scale = math.log(2) * len(batches)
        return Held(masked / scale, dense / scale)


def _policy(name: str, rehearsal: bool) -> Policy:
    if name == "dense":
        return Policy.resolve(name)
    execution = "simulate" if rehearsal else "sparse"
    return Policy(extends=name, execution=execution, margin=1e-6)


def _files(limit: int) -> list[Path]:
    """Some of the Python files that are installed, about ``limit`` bytes."""
    places = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib")}
    found = sorted({p for place in places for p in place.rglob("*.py") if p.is_file()})
    random.Random(0).shuffle(found)
    chosen, total = [], 0
    for path in found:
        if total >= limit:
            break
        chosen.append(path)
        total += path.stat().st_size
    return chosen


def _rate(step: int, steps: int) -> float:
    warm_up = min(_WARM_UP, max(1, steps // 10))
    rest = max(0, step - warm_up) / max(1, steps - warm_up)
    return min(1, (step + 1) / warm_up) * (0.1 + 0.9 * (1 + math.cos(math.pi * rest)) / 2)
