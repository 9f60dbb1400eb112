"""A graph is planned where it stands, and once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nmcompile
from nmcompile.inductor import hooks
from nmcompile.inductor.place import Place, place_of
from tests.graph.calls import Block, Branch, network

X = torch.randn(12, 16, requires_grad=True)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[Place | None]:
    """What ``place_of`` says of each graph, in the order in which Inductor hands them over."""
    seen: list[Place | None] = []

    def record(*arguments: Any) -> Place | None:
        seen.append(place_of(*arguments))
        return seen[-1]

    monkeypatch.setattr(hooks, "place_of", record)
    return seen


def test_a_region_comes_first_and_its_halves_are_not_planned_again(
    places: list[Place | None],
) -> None:
    nmcompile.explain(network(Block), X)
    region, outermost, *halves = places
    assert region is not None
    assert (region.operator, region.times, region.region.paths) == (
        "invoke_subgraph",
        2,
        ("0", "1"),
    )
    assert outermost is not None
    assert (outermost.operator, outermost.times, outermost.doubt) == ("", 1, None)
    assert halves == [None, None]


def test_branches_come_before_what_calls_them(places: list[Place | None]) -> None:
    nmcompile.explain(torch.nn.Sequential(Branch()), X)
    assert [place.operator for place in places if place] == ["cond"] * 4 + [""]
    assert [place.apart for place in places if place] == [True] * 4 + [False]
