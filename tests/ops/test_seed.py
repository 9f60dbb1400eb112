"""``nm::rank_seed``: ranks that are seeded alike draw different masks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from nmcompile.ops.schemas import RankSeed

SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF]


def mixed(seed: int, rank: int | None) -> int:
    return int(RankSeed(torch.tensor([seed]), rank).run())


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_zero_keeps_the_seed_and_every_other_gets_one_of_its_own(seed: int) -> None:
    found = [mixed(seed, rank) for rank in range(1000)]
    assert found[0] == seed
    assert len(set(found)) == 1000


def test_neighbours_differ_in_many_bits() -> None:
    bits = [(mixed(0, r) ^ mixed(0, r + 1)).bit_count() for r in range(100)]
    assert min(bits) >= 8


def test_without_a_number_it_is_this_processs_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    assert mixed(7, None) == mixed(7, 5) != 7


def test_the_result_is_a_tensor_of_its_own() -> None:
    seed = torch.tensor([3])
    assert RankSeed(seed, 0).run().data_ptr() != seed.data_ptr()
    for rank in (0, 3):
        torch.library.opcheck(RankSeed.operator, (seed, rank))
