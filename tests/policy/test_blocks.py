"""Blocks that share a plan: outermost matches of one class that no rule tells apart."""

from __future__ import annotations

import pytest
from torch import nn

from nmcompile import OptionError, Policy, Rule
from nmcompile.policy.blocks import alike_blocks


class Other(nn.Sequential):
    pass


MODEL = nn.ModuleDict({"layers": nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))})
MODEL["layers"].append(Other(nn.Linear(4, 4)))


def test_blocks_of_one_class_are_alike() -> None:
    expected = [["layers.0", "layers.1", "layers.2"], ["layers.3"]]
    assert alike_blocks(MODEL, "layers.*", Policy.recipe("full")) == expected
    assert alike_blocks(MODEL, r"re:layers\.\d", Policy.recipe("full")) == expected


def test_blocks_that_a_rule_tells_apart_are_not() -> None:
    policy = Policy(rules=[Rule(module="layers.1.0", dense=True)], extends="full")
    assert ["layers.1"] in alike_blocks(MODEL, "layers.*", policy)


def test_a_pattern_that_matches_nothing_has_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="matches no module: did you mean 'layers'"):
        alike_blocks(MODEL, "layer", Policy.recipe("full"))
