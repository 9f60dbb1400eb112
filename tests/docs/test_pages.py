"""What the pages list is all there is, and what they show is what one gets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import nmcompile
from nmcompile.graph.find_skipped import Skipped
from nmcompile.policy import Policy, Rule, recipe_names
from nmcompile.reason import Code
from nmcompile.report.nodes import Node
from nmcompile.report.report import GraphReport, Report
from nmcompile.report.rows import EagerRow, Site, UnitRow
from nmcompile.report.saved import SavedTensor
from nmcompile.report.totals import Totals
from tests.docs.blocks import ROOT, run_page
from tests.test_public_api import PROPERTIES, SIGNATURES

DOCS = ROOT / "docs"


def section(page: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level."""
    marks = heading.split(" ")[0]
    text = (DOCS / page).read_text().split(f"\n{heading}\n")[1]
    return re.split(rf"^#{{1,{len(marks)}}} ", text, flags=re.M)[0]


def first_column(text: str) -> list[str]:
    """What the rows of all tables begin with, where that is code."""
    return [
        name
        for cell in re.findall(r"^\| (`[^|]*?) \|", text, re.M)
        for name in re.findall(r"`([^`]+)`", cell)
    ]


def test_every_reason_says_what_to_do() -> None:
    listed = first_column(section("troubleshooting.md", "## Reasons"))
    assert sorted(listed) == sorted(map(str, Code))
    for row in re.findall(r"^\| `.*$", section("troubleshooting.md", "## Reasons"), re.M):
        assert len([cell for cell in row.split(" | ") if cell.strip(" |")]) == 3, row


def test_every_recipe_and_key_is_on_the_page_of_policies() -> None:
    assert sorted(first_column(section("policies.md", "## Recipes"))) == sorted(recipe_names())
    listed = {name.split(" ")[0] for name in first_column(section("policies.md", "## A file"))}
    fields = [Policy.model_fields, Rule.model_fields]
    keys = {field.alias or name for table in fields for name, field in table.items()}
    assert listed == keys - {"rule"}


def fields_of(table: type) -> Iterator[str]:
    if issubclass(table, BaseModel):
        yield from table.model_fields
    else:
        yield from table.__dataclass_fields__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("### The report", Report),
        ("### `graphs`", GraphReport),
        ("### `sites`", Site),
        ("### `units`", UnitRow),
        ("### `skipped`", Skipped),
        ("### `saved`", SavedTensor),
        ("### `nodes_before`, `nodes_after`", Node),
        ("### `eager`", EagerRow),
        ("### `totals`", Totals),
    ],
)
def test_every_field_of_the_json_is_explained(heading: str, table: type) -> None:
    extra = ["totals"] if table is Report else []
    assert first_column(section("report.md", heading)) == [*fields_of(table), *extra]


def test_the_schema_version_is_that_of_the_page() -> None:
    (version,) = re.findall(r"`schema_version` is (\d+)", (DOCS / "report.md").read_text())
    assert int(version) == Report.model_fields["schema_version"].default


@pytest.mark.slow
def test_what_start_shows_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    printed = run_page(DOCS / "start.md").printed[-1]
    shown = re.findall(r"```text\n(.*?)```", (DOCS / "start.md").read_text(), re.S)[-1]
    assert shown == "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())


def test_every_public_name_is_in_the_api() -> None:
    text = (DOCS / "api.md").read_text()
    named = re.findall(r"^\.\. auto\w+:: nmcompile\.([\w.]+)(?:\(.*\))?$", text, re.M)
    masks = [
        f"functional.{name}"
        for name, value in vars(nmcompile.functional).items()
        if getattr(value, "__module__", "") == "nmcompile.functional" and name[0] != "_"
    ]
    assert sorted(named) == sorted([*nmcompile.__all__, *masks])


def test_every_public_member_is_in_the_api() -> None:
    shown = re.findall(
        r"^\.\. autoclass:: nmcompile\.(\w+).*\n   :members: (.*)$",
        (DOCS / "api.md").read_text(),
        re.M,
    )
    members = {f"{owner}.{name}" for owner, names in shown for name in names.split(", ")}
    properties = {
        f"{owner.__name__}.{name}" for owner, names in PROPERTIES.items() for name in names
    }
    methods = {f.__qualname__ for f in SIGNATURES if "." in f.__qualname__}
    assert members == properties | methods
