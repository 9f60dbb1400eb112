"""Exact moments of a random mask: the sampler is a step function of u, so its mean is a sum."""

from __future__ import annotations

import torch
from torch import Tensor

from nmcompile.masks import reference


def moments(block: Tensor, n: int, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and second moment of the pruned block, and the inclusion probabilities; float64, [m].

    Integrates the oracle over u in [0, 1). The steps lie at the fractions of the running sums of
    the inclusion probabilities (for "uniform": of their negatives); between them the oracle is
    constant.
    """
    p = reference.inclusion_probability(block, n, method).double()
    c = p.cumsum(0)
    steps = (c if method == "mvue" else -c) % 1.0
    edges = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), steps]).sort().values
    width, middle = edges.diff(), (edges[1:] + edges[:-1]) / 2
    keep, values = reference.prune_blocks(block.expand(len(middle), -1), n, method, middle)
    assert (keep.sum(-1) <= n).all()
    values, width = values.double(), width[:, None]
    return (width * values).sum(0), (width * values**2).sum(0), (width * keep).sum(0)


def draw_pair_moments(block: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and second moment of approx-mvue 2:4: from the 12 ordered pairs, float64, [4]."""
    a = block.double().abs()
    mean, second = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        rest = a.sum() - a[i]
        for j in range(4):
            if j == i or a[i] == 0 or a[j] == 0:
                continue
            # The middle of the interval of u that draws i, then of the one that draws j.
            u = (a[:i].sum() + a[i] / 2) / a.sum()
            others = torch.where(torch.arange(4) == i, 0, a)
            u2 = (others[:j].sum() + a[j] / 2) / rest
            keep, value = reference.prune_blocks(block, 2, "approx-mvue", u, u2)
            assert keep.nonzero().flatten().tolist() == sorted([i, j])
            weight = a[i] / a.sum() * a[j] / rest
            mean, second = mean + weight * value.double(), second + weight * value.double() ** 2
    return mean, second


def optimal_variance(block: Tensor, n: int) -> float:
    """The smallest variance of an unbiased estimate with at most n non-zeros, by bisection on T."""
    a = block.double().abs()
    if (a > 0).sum() <= n:
        return 0.0
    low, high = 0.0, float(a.sum())
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if (a / t).clamp(max=1).sum() > n else (low, t)
    p = (a / high).clamp(max=1)
    return float((a[p > 0] ** 2 * (1 / p[p > 0] - 1)).sum())
