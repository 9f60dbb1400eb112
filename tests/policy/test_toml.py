"""Files: how they are read, where their rules stand, and the built-in recipes."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from nmcompile.errors import PolicyError
from nmcompile.gemm import Op, Role
from nmcompile.policy import Policy, recipe_names
from tests.policy.samples import SITE, message, one_rule

# Files


def test_an_unreadable_file(tmp_path, monkeypatch):
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")  # chmod would not stop root

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PolicyError, match=r"policy\.toml: cannot be read: Permission denied"):
        Policy.load(tmp_path / "policy.toml")


def test_a_file_that_is_not_utf8(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_bytes(b"schema = 1 # caf\xe9\n")
    with pytest.raises(PolicyError, match=r"not UTF-8 \(byte 16 is 0xe9\); save the file as UTF-8"):
        Policy.load(file)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file here")
def test_a_file_without_an_end():
    with pytest.raises(PolicyError, match="/dev/zero: no policy: at most 1,000,000 bytes"):
        Policy.load("/dev/zero")


def test_a_number_of_thousands_of_digits():
    assert "policy.toml: not a policy: a number is too long" in message(f"schema = {'1' * 5000}")


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


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(PolicyError, match="recipe 'gradient' does not exist: did you mean 'gradi"):
        Policy.recipe("gradient")
