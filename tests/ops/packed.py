"""Packed operands by ``nm::compress``, and when two tensors are the same."""

from __future__ import annotations

import torch

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.compressed.layouts import Layout

LAYOUTS = [str(layout) for layout in Layout]
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a, b):
    """Whether shape and values agree, zeros with their signs and NaNs as they are."""
    kind = INTEGER[a.itemsize]
    return a.shape == b.shape and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def pack(x, layout, dim=1, method="mse", n=2, m=4):
    """The packed operand of one orientation of ``x``."""
    seed = None if method == "mse" else torch.tensor([9])
    (packed,) = torch.ops.nm.compress(x, seed, [3], [dim], n, m, method, str(layout))
    return packed
