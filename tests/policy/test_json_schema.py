"""The schema and the reader accept the same documents."""

from __future__ import annotations

import tomllib
from typing import Any

import jsonschema
import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nmcompile.errors import PolicyError
from nmcompile.policy import Policy, Rule, recipe_names
from nmcompile.policy.model import keys_of
from nmcompile.policy.policy import MAX_RULES
from nmcompile.policy.toml import recipe_text

SCHEMA = Policy.model_json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

Document = dict[str, Any]


def accepted(document: Document) -> tuple[bool, bool]:
    """By the schema, and by the reader."""
    try:
        Policy.loads(tomli_w.dumps(document))
    except PolicyError:
        return VALIDATOR.is_valid(document), False
    return VALIDATOR.is_valid(document), True


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_accepted(name: str) -> None:
    assert accepted(tomllib.loads(recipe_text(name))) == (True, True)


#: Of each key: values that are right somewhere, and some that never are.
VALUES: dict[str, list[Any]] = {
    "module": ["*.mlp.*", "", "re:a|b", "x" * 4096, "x" * 4097, 3, ["a"]],
    "class": ["Linear", True],
    "op": ["linear", ["conv", "matmul"], [], ["linear", "cnov"], 1],
    "role": ["fprop", "dgrad", "wgrad", ["fprop"], ["dgrad", "wgrad"], ["fprop", "fprop"], []],
    "dtype": ["float16", ["bfloat16", "float64"], "half", []],
    "min_flops": [0, 1e9, 10**30, -1, "1e9", True],
    "dense": [True, False, 1, "true"],
    "prune": ["activation", "weight", "gradient", ["weight"], "grad"],
    "format": ["2:4", " 02 : 4\t", "1:2", "4:8", "4:4", "32:32", "1:33", "5:4", "0:4", "2:4:8", 2],
    "method": ["mse", "mvue", "approx-mvue", "uniform", "transposable", "topk"],
    "backward": ["straight-through", "exact", "ste"],
    "refresh": [1, 40, 40.0, 0, -1, 2.5, "40", True],
    "decay": [0, 6e-6, 1, -1e-3, "0.1", True, 10**310],
    "execution": ["simulate", "sparse", "auto", "fast"],
    "fallback": ["dense", "simulate", "error", 0],
}
TOP: dict[str, list[Any]] = {
    "schema": [1, 1.0, 2, "1", True],
    "extends": ["full", "paper-1:2", "ful", 1],
    "execution": VALUES["execution"],
    "fallback": VALUES["fallback"],
    "margin": [1.05, 2, 0, -1.0, "1", True],
    "refresh": VALUES["refresh"],
    "decay": VALUES["decay"],
}


def chosen(values: dict[str, list[Any]], optional: bool = True) -> st.SearchStrategy[Document]:
    keys = {key: st.sampled_from(choices) for key, choices in values.items()}
    return st.fixed_dictionaries({}, optional=keys)


# Most random rules are wrong in some key: these are wrong in how right ones go together, if at all.
RIGHT = {
    "prune": VALUES["prune"][:3],
    "format": ["2:4", "1:2", "4:8"],
    "method": VALUES["method"][:5],
    "role": VALUES["role"][:6],
    "backward": VALUES["backward"][:2],
    "refresh": [1, 40],
    "decay": [0, 6e-6],
    "execution": ["simulate"],
    "dense": [True, False],
}


@pytest.mark.filterwarnings("ignore:.*decides nothing")
@settings(max_examples=300, deadline=None)
@given(chosen(TOP), st.lists(chosen(VALUES) | chosen(RIGHT), max_size=2))
@example({"schema": 1}, [{"dense": True, "backward": "straight-through"}])
@example({"schema": 1}, [{"dense": True, "rol": "fprop"}])
@example({"schema": 1}, [{"dense": True, "class_": "Linear"}])
@example({"schema": 1, "rules": []}, [])
@example({"schema": 1}, [{"prune": "weight", "format": "2:4\n\n"}])
@example({"schema": 1}, [{"prune": "weight", "format": "2:4\u2003"}])
@example({"schema": 1}, [{"prune": "weight", "format": "0000000002:4"}])
@example({}, [])
def test_both_accept_the_same(top: Document, rules: list[Document]) -> None:
    by_schema, by_reader = accepted({**top, "rule": rules})
    assert by_schema == by_reader


@pytest.mark.filterwarnings("ignore:.*decides nothing")
@settings(max_examples=300, deadline=None)
@given(chosen(RIGHT))
def test_both_accept_the_same_rules(rule: Document) -> None:
    by_schema, by_reader = accepted({"schema": 1, "rule": [rule]})
    assert by_schema == by_reader


@pytest.mark.filterwarnings("ignore:decides nothing")
@pytest.mark.filterwarnings("ignore:and .* more such rules")
@pytest.mark.filterwarnings("ignore:.*decides nothing")
@pytest.mark.parametrize("count", [MAX_RULES, MAX_RULES + 1])
def test_both_have_the_same_limit(count: int) -> None:
    document = {"schema": 1, "rule": [{"dense": True}] * count}
    assert accepted(document) == (count == MAX_RULES,) * 2


def test_every_key_was_tried() -> None:
    assert set(VALUES) == set(keys_of(Rule))
    assert {*TOP, "rule"} == set(keys_of(Policy))
