"""``nmcompile policy``: mistakes with their line, recipes, a file to begin with, the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nmcompile.cli.policy_files import check, init, schema, show
from nmcompile.errors import NMError
from nmcompile.policy import Policy, recipe_names
from nmcompile.policy.model import keys_of
from nmcompile.policy.rule import Rule

BAD = """schema = 1
extends = "ful"

[[rule]]
  role = "wgard"  # a comment
prune = "gradient"
modul = 'a#b'
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_mistake_has_its_place_and_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.toml").write_text(BAD)
    assert not check([Path("bad.toml")], None)
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        "bad.toml:5:3: role = \"wgard\": did you mean 'wgrad'?",
        "  |",
        '5 |   role = "wgard"  # a comment',
        "  |   ^^^^^^^^^^^^^^",
        'bad.toml:4:1: format: is missing: a rule that prunes needs one, such as format = "2:4"',
        "  |",
        "4 | [[rule]]",
        "  | ^^^^^^^^",
        "bad.toml:7:1: unknown key \"modul\": did you mean 'module'?",
        "  |",
        "7 | modul = 'a#b'",
        "  | ^^^^^^^^^^^^^",
        "bad.toml:2:1: extends: recipe 'ful' does not exist: did you mean 'full'?",
        "  |",
        '2 | extends = "ful"',
        "  | ^^^^^^^^^^^^^^^",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('schema = 1\nx = "a\n', "bad.toml:2:7: not valid TOML: Illegal character"),
        ("schema = 3\n", "bad.toml:1:1: schema = 3: this nmcompile reads schema 1"),
        ("", "bad.toml: schema is missing: write schema = 1 on the first line"),
        ("schema = 1\n[rule]\ndense = true\n", "bad.toml: [rule] is a single table"),
    ],
)
def test_mistakes_outside_of_a_rule(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    Path("bad.toml").write_text(text)
    assert not check([Path("bad.toml")], None)
    assert capsys.readouterr().out.startswith(line)


def test_files_that_cannot_be_read_and_rules_in_the_shadow_of_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = '[[rule]]\nmodule = "a[b]"\ndense = true\n'
    Path("twice.toml").write_text("schema = 1\n" + rule + rule)
    assert not check([Path("gone.toml"), Path("twice.toml")], None)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("gone.toml: no such policy file")
    assert second.startswith("twice.toml:5 (rule 2) decides nothing")


def test_a_good_file_is_said_to_be_fine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.toml").write_text('schema = 1\nextends = "full"\n')
    assert check([Path("good.toml")], None)
    assert capsys.readouterr().out == "good.toml: fine: 0 rules, then recipe full\n"


def test_a_file_to_begin_with_is_valid_and_names_every_key(folder: Path) -> None:
    init(Path("mine.toml"), "weights")
    text = Path("mine.toml").read_text()
    assert Policy.load("mine.toml").extends == "weights"
    assert text.startswith("#:schema ./mine.schema.json\n")
    assert json.loads(Path("mine.schema.json").read_text())["properties"].keys() >= {"rule"}
    for key in [*keys_of(Policy), *keys_of(Rule)]:
        assert f"{key} = " in text or key == "rule"


def test_nothing_is_overwritten_and_nothing_half_written(folder: Path) -> None:
    Path("mine.toml").write_text("precious")
    with pytest.raises(NMError, match=r"mine\.toml exists"):
        init(Path("mine.toml"), "full")
    with pytest.raises(NMError, match="did you mean 'full'"):
        init(Path("other.toml"), "ful")
    with pytest.raises(NMError, match="cannot be written"):
        init(Path("gone/other.toml"), "full")
    assert [p.name for p in folder.iterdir()] == ["mine.toml"]
    assert Path("mine.toml").read_text() == "precious"


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show("")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "] == [
        *recipe_names()
    ]
    show("paper-1:2")
    assert Policy.loads(capsys.readouterr().out).all_rules == Policy.recipe("paper-1:2").all_rules


def test_of_a_file_every_rule_in_effect_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text('schema = 1\nextends = "full"\n[[rule]]\ndense = true\n')
    show("mine.toml")
    shown = capsys.readouterr().out
    assert shown.index("dense = true") < shown.index('prune = "gradient"')


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    schema()
    assert json.loads(capsys.readouterr().out)["type"] == "object"
