"""Blocks of groups of different sizes: where they start, with sizes that no group changes.

Elements ``offsets[g-1]..offsets[g]`` of a dimension are group g, and those behind the last offset
one more. Every group is moved to the next multiple of m and the gaps are zeros, as at the end of a
dimension that m does not divide: blocks then start anew with every group, and none holds elements
of two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def padded_size(size: int, groups: int, m: int) -> int:
    """A multiple of m that is enough for ``size`` elements in ``groups`` groups and the rest."""
    return (size + min(groups + 1, size) * (m - 1)) // m * m


def places(offsets: Tensor, size: int, m: int) -> Tensor:
    """The place of every element among ``padded_size`` ones: ``[size]`` int64, ascending.

    Nothing is read by the host, and no shape depends on the offsets.

    Args:
        offsets: ``[groups]``, integers, where each group ends: ascending, at most ``size``.
        size: how many elements there are.
        m: the length of a block.
    """
    ends = F.pad(offsets.to(torch.int64), (0, 1), value=size)
    starts = F.pad(ends[:-1], (1, 0))
    whole = (ends - starts + (m - 1)) // m * m
    moved = F.pad(whole.cumsum(0)[:-1], (1, 0)) - starts
    at = torch.arange(size, device=offsets.device)
    return at + moved[torch.searchsorted(ends, at, right=True)]
