"""One rule: what it matches, what is refused in it, and where it was written."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from nmcompile.errors import PolicyError
from nmcompile.gemm import KINDS_OF_ROLE, Op, OperandKind, Role
from nmcompile.policy import Policy, Rule
from tests.policy.samples import PRUNE, SITE, message, one_rule, rule

# What is refused


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("dense = true\nrol = 'wgrad'", "unknown key \"rol\": did you mean 'role'?"),
        ("dense = true\nextends = 'full'", '"extends" is in the wrong place: move it above the fi'),
        ("dense = true\nrole = 'wgard'", "role = \"wgard\": did you mean 'wgrad'?"),
        ("dense = true\nrole = ['fprop', 'wgard']", "role = \"wgard\": did you mean 'wgrad'?"),
        ("dense = true\nrole = 3", 'role = 3: write one of "fprop", "dgrad", "wgrad" or a list'),
        ("dense = true\nrole = []", "role: an empty list matches nothing"),
        ("dense = true\nop = 'cnov'", "op = \"cnov\": did you mean 'conv'?"),
        ("dense = true\ndtype = 'bf16'", "dtype = \"bf16\": did you mean 'bfloat16'?"),
        ("dense = true\nmodule = 3", 'module = 3: write a glob in quotes, such as "*.mlp.*"'),
        ("dense = true\nclass = ['A']", "class = ['A']: write a glob on a class name in quotes"),
        ("dense = true\nmodule = 're:(a'", "module: invalid regular expression '(a': missing ):"),
        ("dense = true\nrole = 'forward'", "role = \"forward\": did you mean 'fprop'?"),
        (
            "dense = true\nrole = 'backward'",
            "did you mean 'dgrad', the gradient of the input, or 'w",
        ),
        ("dense = true\npath = 'a'", "unknown key \"path\": did you mean 'module'?"),
        ("dense = true\nclass_ = 'a'", "unknown key \"class_\": did you mean 'class'?"),
        ("dense = true\nmodule = 're:(?=a)'", "write the exception as a rule above this one"),
        (
            f"dense = true\nmodule = '{'*' * 5000}'",
            "module: a pattern of 5,000 characters: at most",
        ),
        (
            f"dense = true\nmin_flops = 0x{'1' * 5000}",
            "min_flops = an int that is too long to show: w",
        ),
        ("dense = true\nmin_flops = -1", "min_flops = -1: write a finite number of FLOPs, zero or"),
        ("dense = true\nmin_flops = inf", "min_flops = inf: write a finite number"),
        ("dense = true\nmin_flops = '1e9'", 'min_flops = "1e9": write a finite number'),
        ("dense = true\nmin_flops = true", "min_flops = true: write a finite number"),
        ("dense = 'yes'", 'dense = "yes": write true or false, without quotes'),
        ("dense = 1", "dense = 1: write true or false"),
        ("module = 'x'", "the rule does nothing: write prune and format, such as"),
        ("dense = true\nprune = 'weight'\nformat = '2:4'", "the rule also says dense = true"),
        ("dense = true\nformat = '2:4'", "format: has no meaning in a rule with dense = true"),
        ("dense = true\nmethod = 'mse'", "method: has no meaning in a rule with dense = true"),
        ("dense = true\nbackward = 'exact'", "backward: has no meaning in a rule with dense = tr"),
        ("dense = true\nfallback = 'error'", "fallback: has no meaning in a rule with dense = tr"),
        ("prune = 'weight'", "format: is missing: a rule that prunes needs one, such as format ="),
        ("prune = 'gradeint'\nformat = '2:4'", "prune = \"gradeint\": did you mean 'gradient'?"),
        ("prune = 'weight'\nformat = '5:4'", "format: 5:4 is not an N:M format"),
        ("prune = 'weight'\nformat = '0:4'", "format: 0:4 is not an N:M format"),
        (
            "prune = 'weight'\nformat = '2:64'",
            "format: 2:64 is not an N:M format: 1 <= N <= M <= 3",
        ),
        ("prune = 'weight'\nformat = '2:4:8'", "format: '2:4:8' is not an N:M format: write two"),
        ("prune = 'weight'\nformat = [2, 4]", "format: [2, 4] is not an N:M format: write two"),
    ],
)
def test_what_is_refused_in_a_rule(body, words):
    found = message(one_rule(body))
    assert found.startswith("policy.toml:3 (rule 1): ")
    assert words in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"role": "fprop"}, '"gradient" is no operand of fprop, which multiplies "activation" and'),
        ({"role": ["wgrad", "fprop"]}, 'write one of these, or role = "dgrad" or "wgrad"'),
        ({"prune": "activation", "role": "dgrad"}, '"activation" is no operand of dgrad'),
        ({"prune": "weight", "role": "wgrad"}, '"weight" is no operand of wgrad'),
        (
            {"prune": "weight", "role": "wgrad", "method": "transposable"},
            'or role = "fprop" or "dgrad"',
        ),
        ({"method": "MVU"}, "did you mean 'mvue'?"),
        ({"format": "1:2", "method": "approx-mvue"}, 'exists for "2:4" only, not "1:2": write "mv'),
        ({"method": "transposable"}, '"transposable" is for prune = "weight", not "gradient"'),
        (
            {"prune": "weight", "format": "4:8", "method": "transposable"},
            'needs blocks of 2 or 4, such as format = "2:4", not "4:8"',
        ),
        (
            {"refresh": 40},
            'refresh: is of a weight\'s mask, and the rule prunes "gradient": remove',
        ),
        ({"decay": 0.1}, "decay: is of a weight's mask, and the rule prunes"),
        (
            {"prune": "weight", "method": "mvue", "refresh": 40},
            'needs a mask that can be kept, and "mvue" is random: write method = "mse" or "trans',
        ),
        ({"prune": "weight", "refresh": 0}, "refresh = 0: write a whole number of steps, 1 or"),
        ({"prune": "weight", "refresh": -3}, "refresh = -3: write a whole number of steps"),
        ({"prune": "weight", "refresh": 2.5}, "refresh = 2.5: write a whole number of steps"),
        ({"prune": "weight", "refresh": True}, "refresh = true: write a whole number of steps"),
        ({"prune": "weight", "decay": -1e-3}, "decay = -0.001: write a finite number, zero"),
        (
            {"prune": "weight", "role": "dgrad", "decay": 0.1},
            'forward product: add "fprop" to role',
        ),
        ({"backward": "exat"}, "did you mean 'exact'?"),
        ({"role": "wgrad", "backward": "exact"}, '"exact" needs role = "fprop" alone'),
        ({"prune": "weight", "backward": "exact"}, '"exact" needs role = "fprop" alone'),
        (
            {"prune": "weight", "role": "fprop", "method": "mvue", "backward": "exact"},
            '"exact" needs method = "mse" or "transposable" ("mvue" is random)',
        ),
    ],
)
def test_what_is_refused_of_a_pruning_rule(keys, words):
    with pytest.raises(PolicyError, match=re.escape(words)):
        Rule(**{**PRUNE, **keys})


@pytest.mark.parametrize("method", ["mse", "transposable"])
def test_an_exact_backward_is_accepted_in_fprop(method):
    kept = Rule(format="2:4", prune="weight", role="fprop", method=method, backward="exact")
    assert kept.backward == "exact"


# What matches


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
        ({}, {"op": Op.GROUPED}, {"op": Op.MATMUL}),
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


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"module": "x"}, False),
        ({"class": "x"}, False),
        ({"op": "conv"}, False),
        ({"op": ["conv", "grouped", "linear"]}, True),  # what no op means, in another order
        ({"role": "dgrad"}, False),
        ({"role": ["wgrad", "dgrad"]}, True),
        ({"dtype": "float16"}, False),
        ({"min_flops": 1}, False),
        ({"format": "1:2"}, True),  # no condition
        ({"execution": "sparse"}, True),
    ],
)
def test_the_conditions_of_a_rule(change, same):
    assert (Rule(**{**PRUNE, **change}).conditions == Rule(**PRUNE).conditions) is same


# Where it was written


def test_a_rule_keeps_its_own_place_when_it_is_used_in_a_policy():
    mine = Rule(dense=True)
    policy = Policy(rules=[mine, *Policy.recipe("full").rules])
    assert [r.label for r in policy.rules] == [
        "<python>, rule 1",
        "recipe full, rule 1",
        "recipe full, rule 2",
    ]
    assert mine.number is None


def test_a_rule_knows_which_recipe_it_is_of():
    policy = Policy.loads(
        one_rule("dense = true").replace("schema = 1", 'schema = 1\nextends = "paper-1:2"'),
        origin="recipe of mine.toml",  # a file's name does not make it one
    )
    assert [found.recipe for found in policy.all_rules] == [None, "paper-1:2"]
    moved = Policy(rules=[Rule(dense=True), *Policy.recipe("full").rules])
    assert [found.recipe for found in moved.rules] == [None, "full", "full"]
