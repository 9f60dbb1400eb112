"""Whole training steps, ``backend="inductor"`` against ``nm_sparse``: four sections.

A case is a variant of a network, compared with dense: compiled, five steps with AdamW, timed in
turns with dense with and without the optimizer, and one step profiled by classes of kernels. The
dense one is kept for the cases after it. With CUDA graphs, and where something is left out when
``full`` ran nothing sparse, a case holds several variants.
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
from benchmarks.gpu_check.cases.gain import SPARSE_KERNELS
from benchmarks.gpu_check.cases.profile import OURS, by_class, by_name, class_of
from benchmarks.gpu_check.cases.variants import DENSE, SIMULATED, UNFUSED, Build, Variant, variant
from benchmarks.gpu_check.events import Case, Session
from benchmarks.gpu_check.targets import ADAMW_STEP, DECLINED, PRODUCTS, SPARSE, STEP
from nmcompile import OptionError

_LARGE = networks.LlamaShape(8192, 28672, 64, 8, 1, 8192, 2, 4096)
_TINY = networks.LlamaShape(32, 64, 4, 2, 1, 64, 2, 16)
#: By name: the network and its tiny stand-in for a rehearsal.
NETWORKS: dict[str, tuple[Build, Build]] = {
    "llama": (
        partial(networks.llama, networks.LlamaShape()),
        partial(networks.llama, _TINY),
    ),
    "llama-70b": (partial(networks.llama, _LARGE), partial(networks.llama, _TINY)),
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

    section: str
    network: str
    mode: str
    providers: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        """Of the case."""
        return f"{self.network}/{self.mode}/{', '.join(self.providers)}"


def _one_by_one(section: str, network: str, seconds: float, *providers: str) -> list[Plan]:
    return [Plan(section, network, "default", (name,), seconds) for name in providers]


_OTHERS = ("gradients", "activations")
PLAN = (
    *_one_by_one("llama", "llama", 15, DENSE, "full", SIMULATED, "weights", UNFUSED),
    *_one_by_one("large", "llama-70b", 12, DENSE, "full"),
    Plan("graphs", "llama", "reduce-overhead", (DENSE, "full"), 15),
    *_one_by_one("gpt2", "gpt2-medium", 20, DENSE, "full"),
    *_one_by_one("resnet", "resnet50", 20, DENSE, "full"),
    *_one_by_one("recipes", "llama", 20, "full-exact", *_OTHERS),
    *_one_by_one("recipes", "gpt2-medium", 30, "weights", *_OTHERS),
    *_one_by_one("recipes", "resnet50", 30, "weights", *_OTHERS),
    Plan("recipes", "llama", "autotune", (DENSE, "full"), 25),
    Plan("recipes", "gpt2-medium", "reduce-overhead", (DENSE, "full", *_OTHERS), 60),
    Plan("recipes", "resnet50", "reduce-overhead", (DENSE, "full", *_OTHERS), 60),
)
STEPS = 5
_LIMIT = 90  # seconds; what hangs is ended by its section's deadline, too
_FASTEST = 2.5e15  # FLOPs a second that no GPU of these layouts reaches densely
#: Largest relative distance to dense's first loss; tiny batches say little.
_CLOSE, _CLOSE_REHEARSED = 0.1, 0.25


def cases(rehearse: bool) -> list[Case]:
    """One case for each entry of the plan."""
    return [
        Case(
            section=plan.section,
            name=plan.name,
            run=partial(compare, network=plan.network, mode=plan.mode, providers=plan.providers),
            seconds=1 if rehearse else plan.seconds,
            limit=_LIMIT,
        )
        for plan in PLAN
    ]


class _Trained(NamedTuple):
    variant: Variant
    losses: list[float]


def compare(session: Session, network: str, mode: str, providers: Sequence[str]) -> None:
    """Compile, train and time the variants of one network in one mode, each against dense."""
    dense = _kept_dense(session, network, mode)
    if dense is None:
        return
    if DENSE in providers:
        _report_step(session, dense.variant, network, mode)
    for provider in providers:
        if provider != DENSE:
            _compare_one(session, network, mode, provider, dense)
    if mode == "reduce-overhead":
        session.facts.pop("dense")  # its graphs end with this case


def _kept_dense(session: Session, network: str, mode: str) -> _Trained | None:
    """The dense variant, of an earlier case where there was one; None where it does not run."""
    place, kept = (network, mode), session.facts.get("dense")
    if kept is not None and kept[0] == place:
        trained: _Trained = kept[1]
        return trained
    session.facts.pop("dense", None)
    del kept
    session.device.tidy()
    _start_inductor(session)
    found = _trained(session, network, mode, DENSE)
    if found is not None:
        session.facts["dense"] = place, found
    return found


def _trained(session: Session, network: str, mode: str, provider: str) -> _Trained | None:
    build = NETWORKS[network][session.device.rehearsal]
    try:
        fresh = variant(provider, mode, build, session.device)
        return _Trained(fresh, _train(session, fresh, network, mode))
    except OptionError as error:
        session.note(f"{provider}: left out", str(error))
    except Exception:
        if session.device.lost():
            raise
        session.check(f"{provider}: runs", False, traceback.format_exc())
    return None


def _compare_one(session: Session, network: str, mode: str, provider: str, dense: _Trained) -> None:
    trained = _trained(session, network, mode, provider)
    if trained is None:
        return
    _report(session, provider, network, mode)
    _check_losses(session, provider, trained.losses, dense.losses)
    variants = {DENSE: dense.variant, provider: trained.variant}
    _time(session, network, mode, variants)
    _report_step(session, trained.variant, network, mode)


def _report_step(session: Session, v: Variant, network: str, mode: str) -> None:
    """Rows of one profiled step: milliseconds and launches of each class of kernels."""
    found = session.device.profile(lambda: v.step(True))
    row = partial(session.row, v.provider, x=network, config=mode)
    sparse = session.facts.get(SPARSE_KERNELS, ())
    for name, (seconds, launches) in by_class(found, sparse).items():
        row(f"{name}: profiled (ms)", [seconds * 1e3])
        row(f"{name}: launches", [launches])
    if found:
        wall = found[-1].start + found[-1].seconds - found[0].start
        row("share of a step in kernels", [sum(launch.seconds for launch in found) / wall])
    largest = list(by_name(found).items())[:25]
    session.note(f"{v.provider}: kernels", {name[:120]: figures for name, figures in largest})
    ours = [launch for launch in found if class_of(launch.name) == OURS]
    lines = [[launch.name, launch.grid, round(launch.seconds * 1e6, 2)] for launch in ours]
    session.note(f"{v.provider}: own kernels (us)", lines)
    session.note(f"{v.provider}: the device then", session.device.state())


def _start_inductor(session: Session) -> None:
    """An empty cache of compiled functions; what Inductor does but once is done."""
    torch._dynamo.reset()  # of the network before
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
    if mode != "reduce-overhead":  # a replay allocates nothing
        session.row(v.provider, "peak memory of a step (GiB)", [(peak - before) / 2**30], **place)
    session.note(f"{v.provider}: losses", losses)
    return losses


def _check_losses(session: Session, provider: str, own: list[float], dense: list[float]) -> None:
    session.check(f"{provider}: losses are finite", all(map(math.isfinite, own)), str(own))
    # The same weights: forward products are pruned and no more. Later on dense learns the random
    # batch by heart, and sooner than others.
    apart = abs(own[0] - dense[0]) / (abs(dense[0]) or 1.0)
    text = f"{own[0]:.4f}, then {own[-1]:.4f}; dense {dense[0]:.4f}, then {dense[-1]:.4f}"
    bound = _CLOSE_REHEARSED if session.device.rehearsal else _CLOSE
    session.check(f"{provider}: the first loss is close to dense's", apart <= bound, text)
    if not session.device.rehearsal:
        session.check(f"{provider}: learns", own[-1] < own[0], text)


def _report(session: Session, provider: str, network: str, mode: str) -> None:
    """How many products ran sparse, of those that are pruned; note what ran how and why."""
    report = nmcompile.last_report()
    sites, units = report.sites, [unit for graph in report.graphs for unit in graph.units]
    pruned = [s for s in sites if s.pruned]
    ran = sum(s.execution == "sparse" for s in pruned)
    place = {"x": network, "config": mode}
    session.row(provider, SPARSE, [ran], **place)
    session.row(provider, PRODUCTS, [len(sites)], **place)
    if units and not any(unit.sparse for unit in units):
        nearest = max(units, key=lambda unit: unit.dense_us / unit.sparse_us)
        session.row(provider, DECLINED, [nearest.dense_us / nearest.sparse_us], **place)
        session.note(f"{provider}: dense by decision", str(nearest))
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


def _without_figures(reason: str) -> str:
    return " ".join("#" if any(map(str.isdigit, word)) else word for word in reason.split())


def _time(session: Session, network: str, mode: str, variants: dict[str, Variant]) -> None:
    """Rows of step times, and of their ratios to dense in the same round."""
    names, device = list(variants), session.device
    rounds, repeats = (1, 1) if device.rehearsal else (6, 2)
    for update, metric in ((False, STEP), (True, ADAMW_STEP)):
        samples: dict[str, list[float]] = {name: [] for name in names}
        for start in range(rounds):
            if start >= 3 and session.left() < 2:
                break
            for name in names[start % len(names) :] + names[: start % len(names)]:
                seconds = device.wall_time(partial(variants[name].step, update), repeats)
                samples[name].append(seconds)
        for name, times in samples.items():
            ratios = [t / d for t, d in zip(times, samples[DENSE], strict=True)]
            ratio, milli = median(ratios), [t * 1e3 for t in times]
            place = {"x": network, "config": mode}
            session.row(name, metric, milli, **place, ratio_to_inductor=ratio)
            if name != DENSE:
                session.row(name, f"ratio to dense of {metric}", ratios, **place)
