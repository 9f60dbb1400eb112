"""``nm::rank_seed``: one seed, made different for every rank."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from nmcompile.ops.schemas import LIBRARY, RankSeed


def _rank_seed(call: RankSeed) -> Tensor:
    number = dist.get_rank() if call.rank is None else call.rank
    mixed = number * 0x9E3779B97F4A7C15 % 2**64  # an odd factor: no two ranks get the same
    seed: Tensor = call.seed
    return seed ^ (mixed - 2**64 if mixed >= 2**63 else mixed)


LIBRARY.impl("rank_seed", lambda *args: _rank_seed(RankSeed(*args)), "CompositeExplicitAutograd")
