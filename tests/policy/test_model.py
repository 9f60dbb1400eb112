"""A key is declared once, as a field; what messages say of it comes from there."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import pytest
from pydantic import Field

from nmcompile.errors import PolicyError
from nmcompile.policy import Policy, Rule
from nmcompile.policy.model import keys_of
from tests.policy.samples import PRUNE


class Shade(StrEnum):
    LIGHT = "light"
    DARK = "dark"


class Coloured(Rule):
    """A rule with more keys, which no other line of the package knows."""

    colour: Literal["red", "green"] | None = None
    shade: tuple[Shade, ...] | None = None
    depth_: Annotated[float, Field(strict=True)] | None = Field(
        default=None, alias="depth", description="a depth in metres, such as 1.5"
    )


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"colour": "gren"}, "colour = \"gren\": did you mean 'green'?"),
        ({"colour": 3}, 'colour = 3: write one of "red", "green"'),
        ({"shade": 3}, 'shade = 3: write one of "light", "dark" or a list of them'),
        ({"shade": ["dork"]}, "shade = \"dork\": did you mean 'dark'?"),
        ({"depth": "deep"}, 'depth = "deep": write a depth in metres, such as 1.5'),
        ({"depth_": "deep"}, 'depth = "deep": write a depth in metres, such as 1.5'),
        ({"dept": 1.5}, "unknown key \"dept\": did you mean 'depth'?"),
        ({"extends": "full"}, 'key "extends" is in the wrong place: move it above the first [[r'),
    ],
)
def test_a_new_key_needs_its_field_alone(keys, line):
    with pytest.raises(PolicyError) as caught:
        Coloured(**PRUNE, **keys)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_new_key_of_what_is_decided_has_no_meaning_in_a_dense_rule():
    with pytest.raises(PolicyError) as caught:
        Coloured(dense=True, colour="red", depth=1.5)
    assert str(caught.value).split("\n") == [
        "colour: has no meaning in a rule with dense = true: remove it",
        "depth: has no meaning in a rule with dense = true: remove it",
    ]
    assert Coloured(dense=True, colour=None).colour is None


def test_a_new_key_is_part_of_the_digest_and_of_the_file():
    plain, red = Coloured(**PRUNE), Coloured(**PRUNE, colour="red")
    assert Policy(rules=[plain]).digest != Policy(rules=[red]).digest
    assert 'colour = "red"' in Policy(rules=[red]).to_toml()


@pytest.mark.parametrize("table", [Policy, Rule])
def test_every_key_says_what_to_write(table):
    unsaid = [key for key, known in keys_of(table).items() if not (known.words or known.expected)]
    assert unsaid == []


def test_python_objects_raise_the_same_errors():
    with pytest.raises(PolicyError, match="role = \"wgard\": did you mean 'wgrad'") as caught:
        Rule(role="wgard", **PRUNE)
    assert caught.value.__cause__ is not None
    with pytest.raises(PolicyError, match="rule 2: role = \"wgard\": did you mean 'wgrad'"):
        Policy(rules=[Rule(dense=True), {**PRUNE, "role": "wgard"}])
    with pytest.raises(PolicyError, match="unknown key \"extend\": did you mean 'extends'"):
        Policy(extend="full")
    with pytest.raises(PolicyError, match="rule = 3"):
        Policy(rules=3)


def test_a_policy_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        Policy.recipe("full").execution = "sparse"
    with pytest.raises(Exception, match="frozen"):
        Policy.recipe("full").rules[0].dense = True
