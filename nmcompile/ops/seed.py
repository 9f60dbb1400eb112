"""The operator ``torch.ops.nm.rank_seed(Tensor seed, int? rank) -> Tensor``.

One int64 seed, made different for every rank, so that data-parallel processes draw different masks
even where all are seeded alike. ``rank`` None is this process's own, read when the graph runs: the
graphs of all ranks are equal. Rank 0 keeps the seed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from nmcompile.ops.masks import LIBRARY


def _rank_seed(seed: Tensor, rank: int | None) -> Tensor:
    number = dist.get_rank() if rank is None else rank
    mixed = number * 0x9E3779B97F4A7C15 % 2**64  # an odd factor: no two ranks get the same
    return seed ^ (mixed - 2**64 if mixed >= 2**63 else mixed)


def _fake_rank_seed(seed: Tensor, rank: int | None) -> Tensor:
    return torch.empty_like(seed)


LIBRARY.define("rank_seed(Tensor seed, int? rank) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.impl("rank_seed", _rank_seed, "CompositeExplicitAutograd")
torch.library.register_fake("nm::rank_seed", _fake_rank_seed, lib=LIBRARY)

rank_seed = torch.ops.nm.rank_seed.default
