"""Blocks that share a plan: outermost matches of one class that no rule tells apart."""

from __future__ import annotations

import pytest
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from nmcompile import OptionError, Policy, Rule
from nmcompile.policy.blocks import alike_blocks


class Other(nn.Sequential):
    pass


MODEL = nn.ModuleDict({"layers": nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))})
MODEL["layers"].append(Other(nn.Linear(4, 4)))


def paths(model: nn.Module, each: str, policy: Policy | None = None) -> list[list[str]]:
    return [list(group) for group in alike_blocks(model, each, policy or Policy.recipe("full"))]


def test_blocks_of_one_class_are_alike() -> None:
    expected = [["layers.0", "layers.1", "layers.2"], ["layers.3"]]
    for each in ("layers.*", r"re:layers\.\d"):
        assert paths(MODEL, each) == expected
    (blocks, _) = alike_blocks(MODEL, "layers.*", Policy.recipe("full"))
    assert list(blocks.values()) == list(MODEL["layers"][:3])


def test_blocks_that_a_rule_tells_apart_are_not() -> None:
    policy = Policy(rules=[Rule(module="layers.1.0", dense=True)], extends="full")
    assert ["layers.1"] in paths(MODEL, "layers.*", policy)


def test_a_pattern_that_matches_nothing_has_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="matches no module: did you mean 'layers'"):
        alike_blocks(MODEL, "layer", Policy.recipe("full"))


def test_blocks_inside_of_wrappers_are_found_by_their_own_paths() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([checkpoint_wrapper(MODEL["layers"][0])])})
    (group,) = alike_blocks(model, r"re:layers\.0(\.0)?", Policy.recipe("full"))
    assert group == {"layers.0": model["layers"][0]}
    assert paths(model, "layers.*.0") == [["layers.0.0"]]
