"""What is checked of an entry: equality with eager mode, training, and a complete report.

The tolerance of ``dense``: float32 has an epsilon of 1.2e-7, and a compiled graph adds up the same
terms in another order. Sums of a few hundred terms then differ by about 10 epsilons of their
largest term, and a value passes through some ten of them from the input to a gradient: 1e-4 of the
largest element of its tensor leaves room for that and is far below any change of the mathematics.
A gradient that is zero in exact arithmetic (of a bias before a normalisation) is nothing but
rounding of the other gradients, hence the share of the largest gradient of all.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import nmcompile
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.executed import Executed, Layer, executed
from benchmarks.zoo.reports import explained
from benchmarks.zoo.shares import Listed, Shares, listed, not_pruned, shares, without_weight
from nmcompile import Report

RTOL, NOISE = 1e-4, 1e-6
STEPS = 10


@dataclass
class Outcome:
    """The figures of one entry, and what was wrong (nothing, if all is well)."""

    entry: Entry
    report: Report
    parameters: int
    deviation: float
    losses: list[float]
    graphs: int
    seconds: dict[str, float]
    shares: Shares
    failures: list[str] = field(default_factory=list)

    @property
    def unpathed(self) -> int:
        """Products of the model itself, outside of any of its modules."""
        return sum(not site.module for site in self.report.sites)

    @property
    def guessed(self) -> int:
        """Products whose role could not be derived."""
        return sum(site.guess is not None for site in self.report.sites)


def check(entry: Entry) -> Outcome:
    """Run every check of an entry: eager, then ``dense`` once, then ``full`` for some steps."""
    with torch._dynamo.config.patch(**entry.dynamo):
        return _check(entry)


def _check(entry: Entry) -> Outcome:
    model, batch = entry.build()
    losses: list[float] = []

    def step() -> Tensor:
        loss = entry.loss(model, batch)
        losses.append(loss.item())
        return loss

    ran = executed(model, step)
    eager = _gradients(model)
    parameters = sum(p.numel() for p in model.parameters())
    seconds: dict[str, float] = {}

    dense = _compiled(entry, "dense")
    dense_loss = _timed(lambda: dense.step(0), seconds, "dense")
    for name, p in model.named_parameters():
        if name.startswith(tuple(f"{path}." for path in entry.untaken)):
            eager[name] = torch.zeros_like(p)  # a branch that was not taken says so in numbers
    deviation, failures = compare(losses[0], eager, dense_loss, _gradients(dense.model))

    full = _compiled(entry, "full")
    optimizer = torch.optim.AdamW(full.model.parameters(), 1e-2)
    trained = [_timed(lambda: full.step(0), seconds, "full")]
    graphs = len(nmcompile.last_report().graphs)
    for number in range(1, STEPS):
        optimizer.step()
        optimizer.zero_grad()
        trained.append(full.step(number))
    report = nmcompile.last_report()
    if len(report.graphs) != graphs:
        failures.append(f"{len(report.graphs) - graphs} graphs were compiled after the first step")
    if not report.totals.pruned_sites:
        failures.append("full: nothing is pruned")
    rows = listed(report, entry)
    parts = shares(ran, rows, entry)
    failures += falls(trained)
    failures += unlisted(ran, report, entry) + unlisted_layers(ran.layers, rows, entry)
    failures += [*not_pruned(rows, ran), *without_weight(rows, ran)]
    if entry.eager_only:
        failures += uncounted(ran, explained(entry, "full"), entry)
    outcome = Outcome(
        entry, report, parameters, deviation, trained, graphs, seconds, parts, failures
    )
    if (outcome.unpathed or outcome.guessed) and not entry.note:
        failures.append(f"{outcome.unpathed} without a path, {outcome.guessed} guessed, no note")
    return outcome


@dataclass
class _Compiled:
    entry: Entry
    model: nn.Module
    batch: dict[str, Tensor]
    run: nn.Module

    def step(self, number: int) -> float:
        """Forward and backward; the masks of a step are drawn from its number."""
        torch.manual_seed(number)
        loss = self.entry.loss(self.run, self.batch)
        loss.backward()
        return loss.item()


def _compiled(entry: Entry, policy: str) -> _Compiled:
    torch._dynamo.reset()
    model, batch = entry.build()
    run = torch.compile(model, backend="nm_sparse", options={"policy": policy})
    return _Compiled(entry, model, batch, run)  # type: ignore[arg-type]


def _timed(run: Callable[[], float], seconds: dict[str, float], name: str) -> float:
    """CPU time of this process alone: tracing, passes, code generation, not the C++ compiler's."""
    start = time.process_time()
    result = run()
    seconds[name] = time.process_time() - start
    return result


def _gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


def compare(
    loss: float,
    gradients: dict[str, Tensor | None],
    other_loss: float,
    others: dict[str, Tensor | None],
) -> tuple[float, list[str]]:
    """The largest deviation (of the largest element of a tensor), and what is out of tolerance."""
    failures = []
    if not math.isclose(loss, other_loss, rel_tol=RTOL / 10):
        failures.append(f"dense: the loss is {other_loss}, in eager mode {loss}")
    largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    worst = 0.0
    for name, expected in gradients.items():
        got = others[name]
        if expected is None or got is None:
            if expected is not got:
                failures.append(f"dense: {name} has a gradient in one of both modes only")
            continue
        scale = float(expected.abs().max()) + NOISE / RTOL * largest
        deviation = float((got - expected).abs().max()) / scale
        worst = max(worst, deviation)
        if not deviation <= RTOL:
            failures.append(f"dense: the gradient of {name} deviates by {deviation:.1e}")
    return worst, failures


def falls(losses: list[float]) -> list[str]:
    """Training works when every loss is finite and the last is at most 0.9 of the first."""
    if not all(map(math.isfinite, losses)):
        return [f"full: a loss is not finite: {losses}"]
    if losses[-1] > 0.9 * losses[0]:
        return [f"full: the loss does not fall: {losses[0]:.4g} to {losses[-1]:.4g}"]
    return []


def unlisted(ran: Executed, report: Report, entry: Entry | None = None) -> list[str]:
    """Where the report and the eager step disagree about FLOPs of a module in one direction.

    FLOPs are compared in sum, since a model may write the same product as one or as several; what
    is one operator in eager mode must be listed as skipped, or as products, under the same module.
    Nothing may be listed of the modules ``eager_only`` of the entry, both directions of those
    ``fused`` are one, and what is inside of one that is ``traced_again`` is that one's.
    """
    eager_only = entry.eager_only if entry else ()

    def key(path: str, backward: bool) -> tuple[str, bool]:
        for outer in entry.traced_again if entry else ():
            path = outer if path.startswith(f"{outer}.") else path
        return path, backward and (entry is None or path not in entry.fused)

    expected, spared, found = Counter[Key](), Counter[Key](), Counter[Key]()
    for product, count in ran.products.items():
        if product.path not in eager_only:
            expected[key(product.path, product.backward)] += count * product.flops
    for product, count in (ran.outer + ran.unused).items():
        spared[key(product.path, product.backward)] += count * product.flops
    for row in listed(report, entry):
        found[key(row.path, row.backward)] += row.flops
    skipped = {key(s.path, s.backward) for s in report.skipped}
    hidden = {key(o.path, o.backward) for o in ran.opaque if o.path not in eager_only}
    failures = []
    for at in sorted(expected.keys() | found.keys()):
        agree = expected[at] - spared[at] <= found[at] <= expected[at]
        if not agree and not (at in hidden and not expected[at]):
            failures.append(_disagree(at, expected[at], found[at]))
    for opaque in ran.opaque:
        at = key(opaque.path, opaque.backward)
        if at in hidden and at not in skipped and not found[at]:
            failures.append(f"{opaque.name} runs in {opaque.path!r} and is not listed")
    return failures


#: The path of a module, and whether it is its backward.
Key = tuple[str, bool]


def _disagree(key: Key, expected: float, listed: float) -> str:
    direction = "backward" if key[1] else "forward"
    return f"{key[0]!r} {direction}: {expected:g} FLOPs run, {listed:g} are listed"


def unlisted_layers(
    layers: dict[str, Layer], rows: Sequence[Listed], entry: Entry | None = None
) -> list[str]:
    """Layers that lack a product in one of the roles, or have one too many."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        found[row.path, str(row.site.role)] += row.count
    failures = []
    for path, layer in layers.items():
        if entry and path in entry.eager_only:
            continue
        if entry and path.startswith(tuple(f"{outer}." for outer in entry.traced_again)):
            continue  # counted as one with the others inside
        wanted = {"fprop": layer.calls, "dgrad": layer.needs_dgrad, "wgrad": layer.needs_wgrad}
        for role, count in wanted.items():
            if found[path, role] != count:
                failures.append(f"{path}: {count} {role} run, {found[path, role]} are listed")
    return failures


def uncounted(ran: Executed, report: Report, entry: Entry) -> list[str]:
    """Where ``explain`` counts other FLOPs in no graph than ran eagerly, by module."""
    expected: Counter[str] = Counter()
    for product, count in ran.products.items():
        expected[product.path] += count * product.flops
    for opaque in ran.opaque:
        expected[opaque.path] += opaque.flops
    counted: Counter[str] = Counter()
    for row in report.eager:
        counted[row.module] += row.flops or 0.0
    return [
        f"{path!r} runs eagerly: {expected[path]:g} FLOPs, and explain counts {counted[path]:g}"
        for path in sorted({*entry.eager_only, *counted})
        if counted[path] != (expected[path] if path in entry.eager_only else 0.0)
    ]
