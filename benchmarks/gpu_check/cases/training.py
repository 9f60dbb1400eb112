"""Section ``training``: whole training steps, ``backend="inductor"`` against ``nm_sparse``.

A case is a network in a mode. Its variants are compiled one after the other, each takes five steps
with AdamW, then all are timed in interleaved rounds, with and without the optimizer. Recipes that
prune part of what ``full`` prunes are left out when nothing ran sparse under ``full``.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

import nmcompile
from benchmarks.gpu_check.cases import networks
from benchmarks.gpu_check.cases.variants import DENSE, RECIPES, Build, Variant, variant
from benchmarks.gpu_check.events import Case, Session
from benchmarks.gpu_check.targets import ADAMW_STEP, STEP
from nmcompile import OptionError

#: By name: the network and its tiny stand-in for a rehearsal.
NETWORKS: dict[str, tuple[Build, Build]] = {
    "llama": (
        partial(networks.llama, networks.LlamaShape()),
        partial(networks.llama, networks.LlamaShape(32, 64, 4, 2, 1, 64, 2, 16)),
    ),
    "resnet50": (
        partial(networks.resnet, networks.ResNetShape()),
        partial(networks.resnet, networks.ResNetShape(8, (1,), 10, 2, 32)),
    ),
    "gpt2-medium": (
        partial(networks.gpt2, networks.GPT2Shape()),
        partial(networks.gpt2, networks.GPT2Shape(32, 2, 1, 64, 2, 16)),
    ),
}


class Plan(NamedTuple):
    """A case: what is compared, and the seconds that must be left to start it."""

    network: str
    mode: str
    providers: tuple[str, ...]
    seconds: float
    title: str = ""

    @property
    def name(self) -> str:
        """Of the case."""
        return f"{self.network}/{self.mode}{self.title}"


#: The most important ones first: what the verdict needs, then CUDA graphs, then the rest.
PLAN = (
    Plan("llama", "default", (DENSE, *RECIPES), 40),
    Plan("resnet50", "default", (DENSE, "full"), 60),
    Plan("gpt2-medium", "default", (DENSE, "full"), 60),
    Plan("llama", "reduce-overhead", (DENSE, "full"), 30),
    Plan("llama", "autotune", (DENSE, "full"), 25),
    Plan("gpt2-medium", "default", (DENSE, *RECIPES[1:]), 60, ", other recipes"),
    Plan("resnet50", "default", (DENSE, *RECIPES[1:]), 60, ", other recipes"),
    Plan("llama", "reduce-overhead", (DENSE, *RECIPES[1:]), 30, ", other recipes"),
    Plan("gpt2-medium", "reduce-overhead", (DENSE, *RECIPES), 60),
    Plan("resnet50", "reduce-overhead", (DENSE, *RECIPES), 60),
    Plan("gpt2-medium", "autotune", (DENSE, "full"), 60),
    Plan("resnet50", "autotune", (DENSE, "full"), 60),
)
STEPS = 5
_FASTEST = 2.5e15  # FLOPs a second that no GPU of these layouts reaches densely
#: Largest relative distance to dense's loss after STEPS steps; tiny batches say little.
_CLOSE, _CLOSE_REHEARSED = 0.1, 0.25


def cases(rehearse: bool) -> list[Case]:
    """One case for each network and mode."""
    return [
        Case(
            section="training",
            name=plan.name,
            run=partial(compare, network=plan.network, mode=plan.mode, providers=plan.providers),
            seconds=1 if rehearse else plan.seconds,
            limit=400,
        )
        for plan in PLAN
    ]


def compare(session: Session, network: str, mode: str, providers: Sequence[str]) -> None:
    """Compile, train and time the variants of one network in one mode."""
    wanted = list(providers)
    if session.facts.get(("sparse sites", network, mode)) == 0:
        wanted = [name for name in providers if name in (DENSE, "full")]
        session.note("left out", "other recipes: under full nothing ran sparse")
    if wanted == [DENSE]:
        return
    _start_inductor(session)
    build = NETWORKS[network][session.device.rehearsal]
    variants: dict[str, Variant] = {}
    losses: dict[str, list[float]] = {}
    longest = 0.0
    for provider in wanted:
        if provider != DENSE and session.left() < 1.3 * longest + 10:
            session.note(f"{provider}: left out", f"{session.left():.0f} s are left")
            continue
        start = time.monotonic()
        try:
            fresh = variant(provider, mode, build, session.device)
            losses[provider] = _train(session, fresh, network, mode)
        except OptionError as error:
            session.note(f"{provider}: left out", str(error))
            continue
        except Exception:
            if session.device.lost():
                raise
            session.check(f"{provider}: runs", False, traceback.format_exc())
            continue
        longest = max(longest, time.monotonic() - start)
        variants[provider] = fresh
        if provider != DENSE:
            found = _report(session, provider)
            if provider == "full":
                session.facts["sparse sites", network, mode] = found
        _check_losses(session, provider, losses)
    if variants:
        _time(session, network, mode, variants)


def _start_inductor(session: Session) -> None:
    """An empty cache of compiled functions; what Inductor does but once is done."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64  # every variant compiles the same forward
    if "inductor" not in session.facts:
        session.facts["inductor"] = True
        x = torch.randn(64, 64, device=session.device.name, requires_grad=True)
        torch.compile(lambda x: torch.softmax(x @ x, -1))(x).square().sum().backward()
        torch._dynamo.reset()


def _train(session: Session, v: Variant, network: str, mode: str) -> list[float]:
    """Five steps with AdamW; reports compile time, memory and losses."""
    device, place = session.device, {"x": network, "config": mode}
    losses, seconds = [], []
    for number in range(STEPS):
        start = time.perf_counter()
        if number == STEPS - 1:
            before, peak = device.peak_memory(lambda: losses.append(v.step(True).item()))
        else:
            losses.append(v.step(True).item())
        seconds.append(time.perf_counter() - start)
    session.row(v.provider, "first step (s)", [seconds[0]], **place)
    session.row(v.provider, "first two steps (s)", [sum(seconds[:2])], **place)
    # Less what lay there before: parameters, optimizer states, the other variants.
    session.row(v.provider, "peak memory of a step (GiB)", [(peak - before) / 2**30], **place)
    session.note(f"{v.provider}: losses", losses)
    return losses


def _check_losses(session: Session, provider: str, losses: dict[str, list[float]]) -> None:
    own = losses[provider]
    session.check(f"{provider}: losses are finite", all(map(math.isfinite, own)), str(own))
    dense = losses.get(DENSE)
    if provider != DENSE and dense is not None:
        apart = abs(own[-1] - dense[-1]) / abs(dense[-1])
        text = f"{own[-1]:.4f} after {STEPS} steps, dense {dense[-1]:.4f}"
        bound = _CLOSE_REHEARSED if session.device.rehearsal else _CLOSE
        session.check(f"{provider}: loss is close to dense's", apart <= bound, text)


def _report(session: Session, provider: str) -> int:
    """Note what ran how and why; the number of sparse sites."""
    sites = nmcompile.last_report().sites
    counts = Counter(f"{s.role} {s.execution}" for s in sites)
    session.note(f"{provider}: sites", dict(sorted(counts.items())))
    # Times differ from site to site: a reason is counted without its figures.
    reasons = Counter(f"{s.execution}: {_without_figures(s.reason)}" for s in sites)
    session.note(f"{provider}: reasons", dict(reasons.most_common(20)))
    rows: dict[str, Any] = {}
    for s in sites:
        if s.dense_us is not None or s.execution == "sparse":
            key = f"{s.op} {s.role} {'x'.join(s.sizes)} {s.pruned} {s.method}"
            row = rows.setdefault(key, {"count": 0, "execution": s.execution})
            row |= {"count": row["count"] + 1, "dense_us": s.dense_us, "sparse_us": s.sparse_us}
    session.note(f"{provider}: estimates", rows)
    known = [s for s in sites if s.dense_us is not None]
    # Measured on tensors that do not exist, say, any product takes a few microseconds.
    absurd = [s.module for s in known if s.dense_us * 1e-6 < s.flops / _FASTEST]
    session.check(f"{provider}: estimates are possible", not absurd, f"too fast: {absurd[:3]}")
    return sum(s.execution == "sparse" for s in sites)


def _without_figures(reason: str) -> str:
    return " ".join("#" if any(map(str.isdigit, word)) else word for word in reason.split())


def _time(session: Session, network: str, mode: str, variants: dict[str, Variant]) -> None:
    """Rows of step times, and of their ratios to dense in the same round."""
    names, device = list(variants), session.device
    rounds, repeats = (1, 1) if device.rehearsal else (8, 2)
    for update, metric in ((False, STEP), (True, ADAMW_STEP)):
        samples: dict[str, list[float]] = {name: [] for name in names}
        for start in range(rounds):
            if start >= 3 and session.left() < 2:
                break
            for name in names[start % len(names) :] + names[: start % len(names)]:
                seconds = device.wall_time(partial(variants[name].step, update), repeats)
                samples[name].append(seconds)
        for name, times in samples.items():
            ratio = None
            if DENSE in samples:
                ratios = [t / d for t, d in zip(times, samples[DENSE], strict=True)]
                ratio = median(ratios)
                if name != DENSE:
                    place = {"x": network, "config": mode}
                    session.row(name, f"ratio to dense of {metric}", ratios, **place)
            milli = [t * 1e3 for t in times]
            session.row(name, metric, milli, x=network, config=mode, ratio_to_inductor=ratio)
