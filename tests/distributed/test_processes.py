"""DDP, FSDP2, tensor parallelism and both: right gradients, the right masks equal or different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.launch import results, torchrun

pytestmark = pytest.mark.slow

Gradients = dict[str, Any]
LAYERS = [f"layers.{i}.{name}" for i in range(2) for name in ("up", "down")]


def mean(gradients: list[Gradients]) -> dict[str, Tensor]:
    return {
        name: torch.stack([torch.tensor(g[name]) for g in gradients]).mean(0)
        for name in gradients[0]
    }


def same(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(torch.tensor(value), torch.as_tensor(expected[name]))


def test_ddp(tmp_path: Path) -> None:
    ranks = results("ddp", 2, tmp_path)
    expected = mean([r["alone"] for r in ranks])
    for rank in ranks:
        same(rank["inside"], expected)
        same(rank["outside"], expected)  # compiled around the wrapper
        assert rank["paths"] == sorted([*LAYERS, "head"])  # and with the same paths
    assert ranks[0]["digest"] == ranks[1]["digest"]
    # Equal data and seeds, yet every rank draws masks of its own; what they agree on is the mean.
    for step in range(3):
        own = [r["own"][step] for r in ranks]
        assert own[0]["layers.0.up.weight"] != own[1]["layers.0.up.weight"]
        assert ranks[0]["averaged"][step] == ranks[1]["averaged"][step]
        same(ranks[0]["averaged"][step], mean(own))


def test_fsdp(tmp_path: Path) -> None:
    ranks = results("fsdp", 2, tmp_path)
    expected = mean([r["alone"] for r in ranks])
    for rank in ranks:
        same(rank["each"], expected)
        same(rank["whole"], expected)  # hooks: Dynamo compiles the blocks alone, the head not
        assert rank["uncompiled"] == ["head"]
        assert rank["pruned"] == {
            **dict.fromkeys(LAYERS[:2], False),
            **dict.fromkeys(LAYERS[2:], True),
        }
        assert "share one compiled graph" in rank["refused"]
    assert ranks[0]["random"] == ranks[1]["random"]  # gathered: one gradient for all


def test_tensor_parallelism(tmp_path: Path) -> None:
    ranks = results("tp", 2, tmp_path)
    for rank in ranks:
        # 16 features a shard: a block of 4 never straddles two, so that masks are those of one.
        same(rank["split"], rank["alone"])
        assert rank["dgrad"] == ["8", "16", "16"]  # the local product
    assert ranks[0]["random"] == ranks[1]["random"]  # bit for bit: replicas cannot drift apart
    warned = [w for rank in ranks for w in rank["warned"]]
    assert any("have different random seeds" in w and "torch.manual_seed" in w for w in warned)


def test_fsdp_and_tensor_parallelism(tmp_path: Path) -> None:
    ranks = results("fsdp_tp", 4, tmp_path)
    by_part = {r["part"]: r for r in ranks}
    expected = mean([by_part[part]["alone"] for part in (0, 1)])
    for rank in ranks:
        same(rank["both"], expected)
    drawn = [r["input_gradient"] for r in ranks]
    assert drawn[0] == drawn[1]  # one tensor-parallel group
    assert drawn[2] == drawn[3]
    assert drawn[0] != drawn[2]


def test_ranks_with_different_policies_are_stopped(tmp_path: Path) -> None:
    messages = [r["message"] for r in results("other_policy", 2, tmp_path)]
    assert messages[0] == ""  # the first one to come sees nothing yet
    assert "rank 1 and rank 0 have different policies or options" in messages[1]


def test_a_schedule_switches_on_every_rank_at_the_same_step(tmp_path: Path) -> None:
    ranks = results("schedule", 2, tmp_path)
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for rank in ranks:
        assert rank["ddp_compiled"] == rank["fsdp_compiled"] == 0  # all was warm
        assert rank["untouched"]
        assert rank["pruned"] == [False, True, False]
        assert rank["ddp"] == pytest.approx(rank["fsdp"], rel=0.05)  # masks are drawn otherwise
    # From its last phase, at 4, rank 0 goes back to the one of step 2, and rank 1 to that of 0.
    for me, rank in enumerate(ranks):
        assert f"rank {me} switches after" in rank["lost"]
    assert ranks[0]["other"] == ""
    assert "rank 1 and rank 0 have different schedules" in ranks[1]["other"]


def test_ranks_keep_equal_masks(tmp_path: Path) -> None:
    ranks = results("kept_masks", 2, tmp_path)
    assert ranks[0]["ddp"] == ranks[1]["ddp"]  # bit for bit
    for rank in ranks:
        (masks, weights), (found, own) = rank["alone"], rank["ddp"]
        assert found == masks
        assert any(rate > 0 for _, rate in masks.values())
        for one, other in zip(weights, own, strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other))
        assert "is sharded by FSDP, and masks are kept of whole weights" in rank["fsdp"]


def test_the_example_runs_unchanged_with_one_or_two_processes() -> None:
    command = ("examples.distributed", "--steps", "4", "--width", "32", "--depth", "2")
    alone = torchrun(1, *command)
    assert "1 processes, data 1 x tensor 1" in alone
    split = torchrun(2, *command, "--tensor-parallel", "2")
    # The same data, seeds and masks: the printed losses agree.
    assert alone.rsplit("loss", 1)[1].strip() == split.rsplit("loss", 1)[1].strip()
    wrong = torchrun(2, *command, "--tensor-parallel", "3", fails=True)
    assert "2 processes cannot be split by 3" in wrong
