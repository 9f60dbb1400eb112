"""A policy: which rule decides, what it may be made of, what identifies it, its text."""

from __future__ import annotations

import copy
import os
import pickle
import re
import time
import tomllib
import warnings
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmcompile.errors import NMWarning, PolicyError
from nmcompile.gemm import KINDS_OF_ROLE, Op, OperandKind, Role
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.policy import Policy, Rule, recipe_names
from tests.policy.samples import PRUNE, SITE, message, one_rule, rule

# Which rule decides


def test_the_first_match_wins():
    policy = Policy(rules=[rule(module="*.fc1", format="1:2"), Rule(dense=True)])
    assert policy.decide(SITE).format == NMFormat(1, 2)
    assert policy.decide(replace(SITE, path="a.fc2")).dense


def test_no_match_is_none():
    assert Policy(rules=[rule(module="other")]).decide(SITE) is None


def test_own_rules_come_before_those_of_the_recipe():
    policy = Policy.loads(
        one_rule('module = "*.fc1"\ndense = true').replace(
            "schema = 1", 'schema = 1\nextends = "full"'
        ),
        origin="policy.toml",
    )
    assert policy.decide(SITE).label == "policy.toml:4 (rule 1)"
    assert policy.decide(replace(SITE, path="x")).label == "recipe full, rule 2"
    assert len(policy.rules) == 1
    assert len(policy.all_rules) == 3


# What it is made of


def test_resolve_accepts_none_names_paths_policies_and_mappings(tmp_path, monkeypatch):
    file = tmp_path / "policy.toml"
    file.write_text(one_rule("dense = true"))
    odd = tmp_path / "policy"
    odd.write_text(one_rule("dense = true"))
    monkeypatch.chdir(tmp_path)
    dense = Policy(rules=[Rule(dense=True)])
    assert Policy.resolve(None) == Policy.recipe("full")
    assert Policy.resolve("gradients") == Policy.recipe("gradients")
    for value in (file, str(file), "policy.toml", "policy", dense):
        assert Policy.resolve(value) == dense
    assert Policy.resolve({"rule": [{"dense": True}]}) == dense
    assert Policy.resolve({"schema": 1, "rule": (Rule(dense=True),)}) == dense


def test_a_rule_that_a_twin_shadows_is_warned_about():
    text = one_rule("prune = 'gradient'\nformat = '2:4'\nrole = ['dgrad', 'wgrad']")
    twin = "\n[[rule]]\nprune = 'gradient'\nformat = '1:2'\nrole = ['wgrad', 'dgrad']\n"
    with pytest.warns(
        NMWarning, match=r"policy\.toml:8 \(rule 2\) decides nothing: policy\.toml:3"
    ):
        Policy.loads(text + twin, origin="policy.toml")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Policy.loads(text + twin + "module = 'x'")
        Policy.loads("extends = 'full'\n" + text)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ful", "did you mean 'full'? (the path of a policy file ends in .toml)"),
        ("paper-1-2", "did you mean 'paper-1:2'?"),
        ("Full", "did you mean 'full'?"),
        ("no/such.toml", "no/such.toml: no such policy file (in "),
        ("such.toml", "such.toml: no such policy file (in "),
        ("a\0/b", "not a path"),
        (os.sep, "is a directory; name a policy file in it"),
        ("x" * 10_000_000, "xxxx' is neither a recipe nor a file: known: "),
        ({"rule": [{"class_": "A", "dense": True}]}, 'unknown key "class_": did you mean \'class'),
        ({"schema": True}, "schema = true: this nmcompile reads schema 1"),
        ({"schema": 2}, "schema = 2: this nmcompile reads schema 1"),
        ({"margin": 10**5000}, "margin = an int that is too long to show: write the least gain"),
        (3, "a policy is a recipe's name, a path, a Policy or a mapping, not 3"),
        ({"rules": []}, "<python>: unknown key \"rules\": did you mean 'rule'?"),
        ({"rule": [{"dense": True}, {"rol": "x"}]}, '<python>, rule 2: unknown key "rol"'),
        ({"rule": ["x"]}, "<python>, rule 1: 'x' is not a rule"),
        ({1: 2, "rule": [{3: 4}]}, '<python>, rule 1: unknown key "3"'),
    ],
)
def test_what_resolve_refuses(value, words):
    with pytest.raises(PolicyError, match=re.escape(words)):
        Policy.resolve(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "policy.toml: schema is missing: write schema = 1 on the first line"),
        ("schema = 2\nnew_key = 1", "policy.toml: schema = 2: this nmcompile reads schema 1"),
        ("schema = true", "schema = true: this nmcompile reads schema 1"),
        ('schema = "1"', 'schema = "1": this nmcompile reads schema 1'),
        ("schema = 1\nrules = []", "unknown key \"rules\": did you mean 'rule'?"),
        ("schema = 1\nexecution = 'sprase'", "execution = \"sprase\": did you mean 'sparse'?"),
        ("schema = 1\nfallback = 3", 'fallback = 3: write one of "dense", "simulate", "error"'),
        ("schema = 1\nextends = 'ful'", "extends: recipe 'ful' does not exist: did you mean 'full"),
        ("schema = 1\nextends = 1", "extends = 1: write the name of a built-in recipe in quotes"),
        ("schema = 1\nprune = 'weight'", 'key "prune" is in the wrong place: move it below a [[ru'),
        ("schema = 1\n[rule]\ndense = true", "[rule] is a single table: write [[rule]], with two"),
        ("schema = 1\nrule = 3", "rule = 3: write rules, each below a [[rule]] header"),
        ("schema = 1\nrule = [3]", "policy.toml, rule 1: 3 is not a rule"),
    ],
)
def test_what_is_refused_at_the_top_of_a_file(text, words):
    found = message(text)
    assert words in found
    assert found.startswith("policy.toml")
    assert "\n" not in found


def test_all_problems_of_a_file_are_listed():
    found = message(
        """extend = "full"

[[rule]]
role = "wgard"
op = ["linear", "cnov"]
prune = "gradient"
format = "5:4"

[[rule]]
dense = true
prune = "weight"
fromat = "2:4"
"""
    )
    assert found.splitlines() == [
        "policy.toml: 7 problems",
        "  policy.toml: schema is missing: write schema = 1 on the first line",
        "  policy.toml: unknown key \"extend\": did you mean 'extends'?",
        "  policy.toml:3 (rule 1): op = \"cnov\": did you mean 'conv'?",
        "  policy.toml:3 (rule 1): role = \"wgard\": did you mean 'wgrad'?",
        "  policy.toml:3 (rule 1): format: 5:4 is not an N:M format: 1 <= N <= M <= 32 must hold, "
        'for example "2:4" keeps 2 of every 4 elements',
        "  policy.toml:9 (rule 2): prune: the rule also says dense = true: remove one of the two",
        "  policy.toml:9 (rule 2): unknown key \"fromat\": did you mean 'format'?",
    ]


def test_of_thousands_of_problems_some_are_listed_and_the_rest_counted():
    text = "schema = 1\n" + "[[rule]]\nrole = 'wgard'\ndense = true\n" * 1999
    with pytest.raises(PolicyError) as caught:
        Policy.loads(text, origin="policy.toml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "policy.toml: 1,999 problems"
    assert len(lines) == 22
    assert lines[20].startswith("  policy.toml:59 (rule 20): role")
    assert lines[21] == "  and 1,979 more problems"
    assert [p.line for p in caught.value.problems] == [*range(3, 63, 3), None]
    with pytest.raises(PolicyError) as caught:
        Policy(rules=[{"role": "wgard", "dense": True}] * 100)
    assert len(str(caught.value).splitlines()) == 21
    with pytest.warns(NMWarning) as told:
        Policy.loads("schema = 1\n" + "[[rule]]\ndense = true\n" * 100)
    assert len(told) == 21
    assert str(told[20].message) == "and 79 more such rules"


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Policy.resolve({"rule": [{"dense": True}] * n}),
        lambda n: Policy(rules=[Rule(dense=True)] * n),
        lambda n: Policy(rules=(Rule(dense=True) for _ in range(n))),
    ],
)
def test_too_many_rules_are_refused_with_the_limit(make):
    words = "10,000 rules: at most 2,000 are read; let patterns name many modules"
    with pytest.raises(PolicyError, match=words):
        make(10_000)


def test_as_many_rules_as_are_read_cost_little():
    text = "".join(
        f"[[rule]]\nmodule = 'layers.{i}.*'\nrole = 'fprop'\ndense = true\n" for i in range(2000)
    )
    start = time.perf_counter()
    policy = Policy.loads("schema = 1\n" + text)
    assert all(policy.decide(SITE) is None for _ in range(50))
    assert time.perf_counter() - start < 10  # a second on a machine of one's own


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


@pytest.mark.parametrize("path", [None, 3, b"policy.toml", ["policy.toml"]])
def test_what_is_no_path(path):
    with pytest.raises(PolicyError, match="the path of a policy file is text, not "):
        Policy.load(path)


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


# How long masks are kept


@pytest.mark.parametrize(
    ("keys", "top", "life"),
    [
        ({}, {}, None),
        ({"refresh": 1, "decay": 0}, {}, None),
        ({"refresh": 40}, {}, (40, 0.0)),
        ({"decay": 2e-4}, {}, (1, 2e-4)),
        ({}, {"refresh": 40, "decay": 6e-6}, (40, 6e-6)),
        ({"refresh": 20}, {"refresh": 40, "decay": 6e-6}, (20, 6e-6)),
        ({"refresh": 1, "decay": 0}, {"refresh": 40, "decay": 6e-6}, None),
        ({"role": "dgrad"}, {"refresh": 40, "decay": 6e-6}, (40, 0.0)),  # no forward, no decay
        ({"method": "mvue"}, {"refresh": 40, "decay": 6e-6}, None),  # another at each forward
        ({"prune": "activation", "role": "fprop"}, {"refresh": 40}, None),
    ],
)
def test_the_life_of_a_mask_is_the_rules_or_else_the_policys(keys, top, life):
    policy = Policy(rules=[Rule(**{"prune": "weight", "format": "2:4", **keys})], **top)
    found = policy.life_of(policy.rules[0])
    assert (found and (found.refresh, found.decay)) == life
    assert policy.keeps_masks == (life is not None)


def test_a_recipe_that_is_extended_keeps_its_masks_as_long_as_the_policy_says():
    text = 'schema = 1\nextends = "weights"\nrefresh = 40\ndecay = 6e-6\n'
    policy = Policy.loads(text)
    assert policy.keeps_masks
    assert Policy.loads(policy.to_toml()) == policy
    assert policy.digest != Policy.recipe("weights").digest
    assert not Policy.recipe("weights").keeps_masks


@pytest.mark.parametrize("keys", ["refresh = 40", "refresh = 40\ndecay = 0.1", "decay = 1"])
def test_what_is_kept_of_no_mask_is_warned_of(keys):
    words = " and ".join(keys.splitlines())
    with pytest.warns(NMWarning, match=f"mine.toml: {words} decides nothing: no rule keeps the ma"):
        Policy.loads(f'schema = 1\nextends = "full"\n{keys}\n', origin="mine.toml")


def test_the_usual_life_is_no_mistake_anywhere():
    Policy.loads('schema = 1\nextends = "full"\nrefresh = 1\ndecay = 0\n')


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
