"""Which ranks share a computation, and what they notice of each other; without other processes.

``tests/distributed`` does the same with real ones.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import fx

from nmcompile import NMError, NMWarning
from nmcompile.capture import ranks
from nmcompile.capture.ranks import Ranks, check_agreement, check_plans, check_seeds
from nmcompile.gemm import OperandKind

GATHER = torch.ops._c10d_functional.all_gather_into_tensor.default
SQUARE = [[0, 1], [2, 3]]


def graph(*gathered: tuple[str, OperandKind]) -> tuple[fx.Graph, dict[fx.Node, OperandKind]]:
    """A graph that gathers values of these kinds within these groups."""
    made, kinds = fx.Graph(), {}
    for group, kind in gathered:
        value = made.placeholder("value")
        kinds[value] = kind
        made.call_function(GATHER, (value, 2, group))
    return made, kinds


def sharing(place: tuple[int, ...], *gathered: tuple[str, OperandKind]) -> list[int]:
    mesh = (SQUARE, place, ("data", "tensor"))
    return Ranks((mesh,)).that_share(*graph(*gathered))


WEIGHT, ACTIVATION = OperandKind.WEIGHT, OperandKind.ACTIVATION


@pytest.mark.parametrize(
    ("place", "gathered", "expected"),
    [
        ((0, 1), [], [0, 1, 2, 3]),
        ((0, 1), [("data", WEIGHT)], [0, 1]),
        ((1, 0), [("data", WEIGHT)], [2, 3]),
        ((1, 0), [("tensor", WEIGHT)], [0, 2]),
        ((1, 0), [("data", ACTIVATION)], [0, 1, 2, 3]),
        ((1, 0), [("data", ACTIVATION), ("data", WEIGHT)], [2, 3]),
        ((1, 0), [("another", WEIGHT)], [0, 1, 2, 3]),
        ((1, 0), [("data", WEIGHT), ("tensor", WEIGHT)], []),  # itself alone
    ],
)
def test_ranks_share_along_what_no_weight_is_gathered_along(
    place: tuple[int, ...], gathered: list[tuple[str, OperandKind]], expected: list[int]
) -> None:
    assert sharing(place, *gathered) == expected


def test_several_meshes_are_taken_together() -> None:
    meshes = (([0, 1], (0,), ("a",)), ([[0], [4]], (0, 0), ("b", "c")))
    assert Ranks(meshes).that_share(*graph()) == [0, 1, 4]
    assert Ranks(meshes).that_share(*graph(("a", WEIGHT))) == [0, 4]
    assert Ranks().that_share(*graph()) == []


def test_one_process_shares_with_nobody() -> None:
    assert Ranks.of([torch.ones(2)]) is None


# What ranks notice of each other


class World:
    """Several ranks that take turns in this process, with one store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int = 3) -> None:
        self.patch, store = monkeypatch, dist.HashStore()
        self.settings: dict[int, dict[str, list[str]]] = {}
        monkeypatch.setattr(ranks._torch, "process_group_store", lambda: store)
        monkeypatch.setattr(dist, "get_world_size", lambda: size)

    def turn(self, rank: int) -> None:
        """Be this rank from now on."""
        self.patch.setattr(dist, "get_rank", lambda: rank)
        self.patch.setattr(ranks, "_settings", self.settings.setdefault(rank, {}))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_whoever_comes_later_sees_the_difference(world: World) -> None:
    world.turn(0)
    assert check_agreement("plans", "key", "a") == ""  # nobody else is there, and nobody waits
    world.turn(1)
    assert check_agreement("plans", "key", "a") == ""
    assert check_agreement("plans", "another key", "b") == ""
    world.turn(2)
    difference = check_agreement("plans", "key", "b")
    assert difference == "rank 2 and rank 0 have different plans: b and a"
    assert check_agreement("plans", "key", "b", ranks=[1, 2]) == (
        "rank 2 and rank 1 have different plans: b and a"
    )
    assert check_agreement("plans", "key", "b", ranks=[2]) == ""


def test_without_a_store_nothing_is_compared() -> None:
    assert check_agreement("plans", "key", "a") == ""


def test_equal_plans_pass_however_often_and_in_whatever_turn(world: World) -> None:
    for rank in (0, 1, 0, 2, 1):
        world.turn(rank)
        for policy in ("first", "second"):
            check_plans("graph", policy, f"decisions of {policy}")


@pytest.mark.parametrize(
    ("settings", "decisions", "what"),
    [("another", "sites", "policies or options"), ("policy", "others", "plans")],
)
def test_another_policy_or_plan_is_an_error(
    settings: str, decisions: str, what: str, world: World
) -> None:
    world.turn(0)
    check_plans("graph", "policy", "sites")
    world.turn(1)
    check_plans("another graph", settings, decisions)
    with pytest.raises(NMError, match=f"rank 1 and rank 0 have different {what}: .*same policy"):
        check_plans("graph", settings, decisions)


def test_ranks_that_share_must_be_seeded_alike(world: World) -> None:
    for rank, seed, sharing in ((0, 5, [0, 1]), (1, 5, [0, 1]), (2, 6, [2]), (0, 5, [0, 2])):
        world.turn(rank)
        torch.manual_seed(seed)
        check_seeds(sharing)  # a warning would be an error
    world.turn(2)
    torch.manual_seed(6)
    with pytest.warns(NMWarning, match="rank 2 and rank 0 have different random seeds: 6 and 5"):
        check_seeds([0, 2])
