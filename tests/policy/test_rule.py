from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nmcompile.errors import PolicyError
from nmcompile.policy import Policy, Rule

PRUNE = {"prune": "gradient", "format": "2:4"}


def one_rule(body: str) -> str:
    return f"schema = 1\n\n[[rule]]\n{body}\n"


def message(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        Policy.loads(text, origin="policy.toml")
    return str(caught.value)


# Names and paths


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


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(PolicyError, match="recipe 'gradient' does not exist: did you mean 'gradi"):
        Policy.recipe("gradient")


# Reading files


def test_an_unreadable_file(tmp_path, monkeypatch):
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")  # chmod would not stop root

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PolicyError, match=r"policy\.toml: cannot be read: Permission denied"):
        Policy.load(tmp_path / "policy.toml")


def test_a_file_that_is_not_utf8(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_bytes(b"schema = 1 # caf\xe9\n")
    with pytest.raises(PolicyError, match=r"not UTF-8 \(byte 16 is 0xe9\); save the file as UTF-8"):
        Policy.load(file)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    file = tmp_path / "policy.toml"
    text = one_rule('module = "é"\ndense = true').replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (found,) = Policy.load(file).rules
    assert (found.module, found.line) == ("é", 3)
    assert found.label == f"{file}:3 (rule 1)"


def test_toml_that_does_not_parse_keeps_its_line_and_column():
    words = message(one_rule("format = 2:4"))
    assert "policy.toml: not valid TOML" in words
    assert "(at line 4, column 11)" in words
    assert 'format = "2:4"' in words


def test_toml_nested_too_deeply():
    assert "nested too deeply" in message("a = " + "[" * 100_000)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("schema = 1\n[[rule]]\ndense = true\n  [[ 'rule' ]] # x\nop = 'conv'\ndense=true", [2, 4]),
        # rules without a header, and a header that is none
        ("schema = 1\nrule = [{dense = true}, {op = 'conv', dense = true}]", [None, None]),
        ("schema = 1\n[[rule]]\ndense = true\nmodule = '''\n[[rule]]'''", [None]),
        # "\u2028" ends a line for str.splitlines, not for TOML
        ("schema = 1 # \u2028\n[[rule]]\ndense = true", [2]),
    ],
)
def test_the_lines_of_rules(text, lines):
    rules = Policy.loads(text).rules
    assert [found.line for found in rules] == lines
    assert [found.number for found in rules] == list(range(1, len(lines) + 1))


# What is refused


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
        ("dense = true\nmodule = 're:(a'", "module: invalid regular expression '(a': missing ),"),
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
