"""Results beside those of the simulation, and what two right implementations may differ in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fuzzing.case import Find, Tally
from fuzzing.execute import PlannedNetwork, Results
from fuzzing.rewritten import RewrittenNetwork
from fuzzing.rounding import Rounding

#: Simulations in which every value is rounded once more; each finds a tie with a chance of a half.
RERUNS = 12
#: How far masked results in float64 may be apart, relative to a tensor's largest element.
RELATIVE = 1e-9
SIGMAS = 5.5
Bounds = Sequence[Tensor | None]


def compare_masked(
    check: str,
    found: Results,
    simulated: Results,
    allowed: Bounds,
    again: Callable[[], Results],
    tally: Tally,
) -> None:
    """Results beside those of the simulation, which runs ``again`` where they differ."""
    tally.checks[check] += 1
    wrong = _first_apart(found, simulated, allowed)
    if wrong is None:
        return
    if _hangs_on_rounding(again, simulated, allowed):
        tally.checks[f"{check}: a tie"] += 1
        return
    raise Find(check, wrong)


def _first_apart(found: Results, expected: Results, allowed: Bounds) -> str | None:
    for i, (a, b, limit) in enumerate(zip(found, expected, allowed, strict=True)):
        a, b = or_zeros(a, b), or_zeros(b, a)
        if a is None or b is None or a.numel() == 0:
            continue
        # A masked network is as well conditioned as the dense one, or the figure says it is not.
        bound = max(RELATIVE * float(b.abs().max()), 0 if limit is None else float(limit.max()))
        off = float((a - b).abs().max())
        if not off <= bound:
            return f"result {i} is off by {off:.3g}, bound {bound:.3g}"
    return None


def _hangs_on_rounding(again: Callable[[], Results], simulated: Results, allowed: Bounds) -> bool:
    """Whether rounding decides a mask: of values that are equal, or that are rounding alone.

    The mean of a layer norm's output is such a value. No margin between what is kept and what is
    dropped tells it, since that is as large as the values are.
    """
    for seed in range(RERUNS):
        with Rounding(torch.finfo(torch.float64).eps, seed):
            rounded = again()
        if _first_apart(rounded, simulated, allowed) is not None:
            return True
    return False


def compare_expectation(
    planned: PlannedNetwork | RewrittenNetwork,
    expected: Results,
    again: Callable[[], Results],
    tally: Tally,
) -> None:
    """The mean over many runs. What fails at first is looked at again with fresh, more numbers."""
    tally.checks["expectation"] += 1
    for count, seed in ((128, 1), (1024, 2), (4096, 3)):
        wrong = _biased(planned, expected, count, seed)
        if wrong is None:
            return
    if _hangs_on_rounding(again, expected, [None] * len(expected)):
        tally.checks["expectation: a tie"] += 1
        return
    raise Find("expectation", wrong)


def _biased(
    planned: PlannedNetwork | RewrittenNetwork, expected: Results, count: int, seed: int
) -> str | None:
    """Fixed random projections of every result: sums of many elements, so that rare masks count."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    signs = [
        None if e is None else torch.randn(4, e.numel(), generator=g, dtype=torch.float64)
        for e in expected
    ]

    def projected(results: Results) -> Tensor:
        parts = [
            s @ (torch.zeros(s.shape[1], dtype=s.dtype) if r is None else r.double().flatten())
            for s, r in zip(signs, results, strict=True)
            if s is not None
        ]
        return torch.cat(parts)

    samples = torch.stack([projected(planned.run()) for _ in range(count)])
    target = projected(expected)
    mean, error = samples.mean(0), samples.std(0) / count**0.5
    off = (mean - target).abs()
    bad = off > SIGMAS * error + 1e-9 * target.abs().clamp(min=1)
    if not bool(bad.any()):
        return None
    worst = int((off / error.clamp(min=1e-12)).argmax())
    return f"a projection's mean is {float(off[worst]):.3g} off, {SIGMAS} sigma: {SIGMAS * float(error[worst]):.3g}"  # noqa: E501


def or_zeros(a: Tensor | None, like: Tensor | None) -> Tensor | None:
    """No gradient and a gradient of zeros are the same."""
    return torch.zeros_like(like) if a is None and like is not None else a
