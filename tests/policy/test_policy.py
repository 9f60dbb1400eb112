from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from importlib import resources

import pytest

from nmcompile.errors import NMWarning
from nmcompile.gemm import KINDS_OF_ROLE, Op, OperandKind, Role
from nmcompile.masks.formats import NMFormat
from nmcompile.policy import Policy, Rule, recipe_names


@dataclass(frozen=True)
class FakeSite:
    path: str = "encoder.layers.0.mlp.fc1"
    module_class: str = "Linear"
    op: Op = Op.LINEAR
    role: Role = Role.WGRAD
    dtype: str = "bfloat16"
    flops: float | None = 1e9


SITE = FakeSite()
PRUNE = {"prune": "gradient", "format": "2:4"}


def rule(**keys: object) -> Rule:
    return Rule(**{**PRUNE, **keys})


def one_rule(body: str) -> str:
    return f"schema = 1\n\n[[rule]]\n{body}\n"


# Matching


@pytest.mark.parametrize(
    ("condition", "hit", "miss"),
    [
        ({"module": "*.mlp.*"}, {"path": "a.b.mlp.fc1.x"}, {"path": "mlp.fc1"}),
        ({"module": "head"}, {"path": "head"}, {"path": "Head"}),
        ({"module": "layers.[0-3].fc"}, {"path": "layers.2.fc"}, {"path": "layers.4.fc"}),
        ({"module": ""}, {"path": ""}, {"path": "a"}),
        ({"module": r"re:layers\.\d+\.fc"}, {"path": "layers.12.fc"}, {"path": "layers.1.fc1"}),
        ({"class": "*Conv*"}, {"module_class": "MyConv2d"}, {"module_class": "Linear"}),
        ({"class_": "Linear"}, {"module_class": "Linear"}, {"module_class": "QLinear"}),
        ({"op": "conv"}, {"op": Op.CONV}, {"op": Op.LINEAR}),
        ({"op": ["conv", "matmul"]}, {"op": Op.MATMUL}, {"op": Op.LINEAR}),
        ({}, {"op": Op.CONV}, {"op": Op.MATMUL}),
        ({"role": "dgrad"}, {"role": Role.DGRAD}, {"role": Role.WGRAD}),
        ({"role": ["dgrad", "wgrad"]}, {"role": Role.WGRAD}, {"role": Role.FPROP}),
        ({}, {"role": Role.DGRAD}, {"role": Role.FPROP}),
        ({"dtype": "float16"}, {"dtype": "float16"}, {"dtype": "bfloat16"}),
        ({"dtype": ["float16", "float32"]}, {"dtype": "float32"}, {"dtype": "float64"}),
        ({"min_flops": 100}, {"flops": 100.0}, {"flops": 99.0}),
        ({"min_flops": 100}, {"flops": None}, {"flops": 0.0}),
    ],
)
def test_a_condition_matches_and_does_not_match(condition, hit, miss):
    assert rule(**condition).matches(replace(SITE, **hit))
    assert not rule(**condition).matches(replace(SITE, **miss))


def test_every_condition_must_hold():
    both = rule(module="*.fc1", dtype="bfloat16")
    assert both.matches(SITE)
    assert not both.matches(replace(SITE, path="a.fc2"))
    assert not both.matches(replace(SITE, dtype="float32"))


@pytest.mark.parametrize("kind", OperandKind)
def test_without_a_role_a_rule_matches_where_its_operand_exists(kind):
    expected = tuple(role for role in Role if kind in KINDS_OF_ROLE[role])
    assert rule(prune=kind).roles == expected


def test_a_dense_rule_matches_every_op_and_role():
    dense = Rule(dense=True)
    assert all(dense.matches(replace(SITE, op=op, role=role)) for op in Op for role in Role)


@pytest.mark.parametrize(
    ("kind", "method"), [("activation", "mse"), ("weight", "mse"), ("gradient", "mvue")]
)
def test_the_method_depends_on_the_operand(kind, method):
    assert rule(prune=kind).method == method


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


# Recipes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dense", {}),
        ("activations", {"fprop": "activation mse 2:4"}),
        ("gradients", {"dgrad": "gradient mvue 2:4", "wgrad": "gradient mvue 2:4"}),
        (
            "full",
            {
                "fprop": "activation mse 2:4",
                "dgrad": "gradient mvue 2:4",
                "wgrad": "gradient mvue 2:4",
            },
        ),
        (
            "weights",
            {
                "fprop": "weight transposable 2:4",
                "dgrad": "weight transposable 2:4",
                "wgrad": "gradient mvue 2:4",
            },
        ),
        ("paper-1:2", {"wgrad": "gradient mvue 1:2"}),
        ("mse-gradients", {"dgrad": "gradient mse 2:4", "wgrad": "gradient mse 2:4"}),
    ],
)
def test_what_a_recipe_prunes(name, expected):
    policy = Policy.recipe(name)
    decided = {role: policy.decide(replace(SITE, role=role)) for role in Role}
    assert expected == {
        role: f"{found.prune} {found.method} {found.format}"
        for role, found in decided.items()
        if found and not found.dense
    }
    assert all(found.backward == "straight-through" for found in policy.rules)


def test_every_recipe_file_has_a_name_and_a_header():
    folder = resources.files("nmcompile.policy") / "recipes"
    files = [f for f in folder.iterdir() if f.name[0] != "_"]
    assert {file.name for file in files} == {
        f"{name.replace(':', '-')}.toml" for name in recipe_names()
    }
    for file in files:
        header = file.read_text().split("schema = 1")[0]
        assert header.startswith("# Prunes ")
        assert ("straight-through" in header) == (
            file.name in ("full.toml", "activations.toml", "weights.toml")
        )


def test_no_recipe_prunes_a_matmul_of_two_activations():
    for name in recipe_names():
        for role in Role:
            found = Policy.recipe(name).decide(replace(SITE, op=Op.MATMUL, role=role))
            assert found is None or found.dense


def test_a_rule_knows_which_recipe_it_is_of():
    policy = Policy.loads(
        one_rule("dense = true").replace("schema = 1", 'schema = 1\nextends = "paper-1:2"'),
        origin="recipe of mine.toml",  # a file's name does not make it one
    )
    assert [found.recipe for found in policy.all_rules] == [None, "paper-1:2"]
    moved = Policy(rules=[Rule(dense=True), *Policy.recipe("full").rules])
    assert [found.recipe for found in moved.rules] == [None, "full", "full"]


# Resolving


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
