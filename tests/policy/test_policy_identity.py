from __future__ import annotations

import copy
import pickle
import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmcompile.gemm import KINDS_OF_ROLE, Op, OperandKind, Role
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.policy import Policy, Rule, recipe_names

PRUNE = {"prune": "gradient", "format": "2:4"}


def rule(**keys: object) -> Rule:
    return Rule(**{**PRUNE, **keys})


def one_rule(body: str) -> str:
    return f"schema = 1\n\n[[rule]]\n{body}\n"


# Identity


def test_policies_are_equal_by_content():
    read = Policy.loads(one_rule("prune = 'gradient'\nformat = '2:4'"), origin="policy.toml")
    made = Policy(rules=[Rule(prune="gradient", format=NMFormat(2, 4), method=Method.MVUE)])
    assert read == made
    assert hash(read) == hash(made)
    assert (read.rules[0].label, made.rules[0].label) == (
        "policy.toml:3 (rule 1)",
        "<python>, rule 1",
    )


def test_a_rule_keeps_its_own_place_when_it_is_used_in_a_policy():
    mine = Rule(dense=True)
    policy = Policy(rules=[mine, *Policy.recipe("full").rules])
    assert [r.label for r in policy.rules] == [
        "<python>, rule 1",
        "recipe full, rule 1",
        "recipe full, rule 2",
    ]
    assert mine.number is None


def test_a_policy_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        Policy.recipe("full").execution = "sparse"
    with pytest.raises(Exception, match="frozen"):
        Policy.recipe("full").rules[0].dense = True


def test_a_copy_keeps_content_and_places():
    policy = Policy.recipe("full")
    for other in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
        assert other == policy
        assert other.digest == policy.digest
        assert {rule.recipe for rule in other.rules} == {"full"}


BASE = {"prune": "weight", "format": "2:4", "role": "fprop"}


@pytest.mark.parametrize(
    "change",
    [
        {"module": "*"},
        {"class": "*"},
        {"op": "linear"},
        {"role": "dgrad"},
        {"dtype": "float16"},
        {"min_flops": 1},
        {"prune": "activation"},
        {"format": "1:2"},
        {"method": "transposable"},
        {"backward": "exact"},
        {"execution": "sparse"},
        {"fallback": "error"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_changes_with_every_key_of_a_rule(change):
    before = Policy(rules=[Rule(**BASE)])
    assert Policy(rules=[Rule(**{**BASE, **change})]).digest != before.digest
    assert Policy(rules=[Rule(**BASE)]).digest == before.digest


def test_the_digest_changes_with_everything_else_that_shows():
    one, two = rule(module="a"), rule(module="b")
    text = one_rule("dense = true")
    policies = [
        Policy(),
        Policy(execution="sparse"),
        Policy(fallback="error"),
        Policy(extends="full"),
        Policy(extends="gradients"),
        Policy(rules=[one, two]),
        Policy(rules=[two, one]),
        Policy(rules=[Rule(dense=True)]),
        Policy.loads(text, origin="a.toml"),
        Policy.loads(text, origin="b.toml"),
        Policy.loads("\n" + text, origin="b.toml"),
    ]
    digests = {policy.digest for policy in policies}
    assert len(digests) == len(policies)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


# Round trip


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_round_trips(name):
    policy = Policy.recipe(name)
    assert Policy.loads(policy.to_toml()) == policy


def test_written_toml_looks_like_written_by_hand():
    policy = Policy(extends="full", rules=[Rule(class_="Linear", role="wgrad", **PRUNE)])
    text = """schema = 1
extends = "full"
execution = "auto"
fallback = "dense"
margin = 1.05

[[rule]]
class = "Linear"
role = "wgrad"
prune = "gradient"
format = "2:4"
method = "mvue"
"""
    assert policy.to_toml() == text
    keys = {"schema", "extends", "execution", "fallback", "margin", "rule"}
    assert set(tomllib.loads(text)) == keys


def words(values: object) -> st.SearchStrategy:
    return st.none() | st.lists(st.sampled_from(list(values)), min_size=1, max_size=3)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    keys: dict[str, object] = {
        "module": draw(st.none() | st.text().filter(lambda s: not s.startswith("re:"))),
        "class_": draw(st.none() | st.sampled_from(["*Conv*", "re:Linear|Conv.d", '"\\\n'])),
        "op": draw(words(Op)),
        "dtype": draw(words(["float16", "bfloat16", "float32", "float64"])),
        "min_flops": draw(st.none() | st.floats(0, allow_nan=False, allow_infinity=False)),
    }
    if draw(st.booleans()):
        return Rule(**keys, role=draw(words(Role)), dense=True)
    kind = draw(st.sampled_from(OperandKind))
    keys["role"] = draw(words(role for role in Role if kind in KINDS_OF_ROLE[role]))
    form = draw(
        st.integers(1, 32).flatmap(lambda m: st.builds(NMFormat, st.integers(1, m), st.just(m)))
    )
    methods = [None, Method.MSE, Method.MVUE, Method.UNIFORM]
    methods += [Method.APPROX_MVUE] if form == NMFormat(2, 4) else []
    methods += [Method.TRANSPOSABLE] if kind == "weight" and form.m in (2, 4) else []
    method = draw(st.sampled_from(methods))
    deterministic = method in (None, Method.MSE, Method.TRANSPOSABLE)
    exact = deterministic and set(keys["role"] or ()) == {Role.FPROP} and draw(st.booleans())
    return Rule(
        **keys,
        prune=kind,
        format=form,
        method=method,
        backward="exact" if exact else "straight-through",
        execution=draw(st.sampled_from([None, "simulate", "sparse", "auto"])),
        fallback=draw(st.sampled_from([None, "dense", "simulate", "error"])),
    )


@pytest.mark.filterwarnings("ignore:.*decides nothing")
@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Policy,
        extends=st.sampled_from([None, *recipe_names()]),
        execution=st.sampled_from(["simulate", "sparse", "auto"]),
        fallback=st.sampled_from(["dense", "simulate", "error"]),
        rules=st.lists(rules(), max_size=4),
    )
)
def test_any_policy_round_trips_with_its_lines(policy):
    text = policy.to_toml()
    read = Policy.loads(text)
    assert read == policy
    headers = [i for i, line in enumerate(text.split("\n"), 1) if line == "[[rule]]"]
    assert [found.line for found in read.rules] == headers
