"""What the pages and files of the project say about each other is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = sorted(
    [
        *(*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")),
        *(ROOT / "benchmarks" / "README.md", ROOT / "tools" / "nullgpu" / "README.md"),
    ]
)


def test_there_are_pages() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md"} < names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not heading or heading in _anchors(file.read_text()), target


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_the_pictures_of_the_readme_are_small_and_say_what_they_show() -> None:
    """An index that does not find them shows the words."""
    text = (ROOT / PROJECT["project"]["readme"]).read_text()
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 150_000, picture
    assert all(len(words) > 40 for words in re.findall(r'<img alt="([^"]*)"', text))
    assert text.count("<img ") == len(re.findall(r'<img alt="', text))
    assert "they lead nowhere on a package index" in text


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['project']['version']}\n" in text
    assert f"\nlicense: {PROJECT['project']['license']}\n" in text


def test_commits_are_checked_with_the_versions_of_ci() -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    used = [
        one for found in re.findall(r"dependencies: \[(.*)\]", text) for one in found.split(", ")
    ]
    assert {one.partition("==")[0] for one in used} == {"ruff", "codespell"}
    assert set(used) <= set(pinned)


INDEX = (ROOT / "docs" / "index.md").read_text()


def test_every_page_is_in_the_contents() -> None:
    listed = re.findall(r"^(?:\w+|\.\./[\w/]+)$", INDEX, re.M)
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages - set(listed) == set(), "list it in a toctree of docs/index.md"
    assert [n for n in listed if not (ROOT / "docs" / f"{n}.md").exists()] == []
    assert len(set(listed)) == len(listed)


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_room_is_in_the_architecture() -> None:
    package = ROOT / "nmcompile"
    folders = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    modules = {p.stem for p in package.glob("*.py") if p.stem != "__init__"}
    table = ARCHITECTURE.split("## The rooms")[1].split("**The law")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted([*folders, *modules, "nmcompile/"])


def test_the_law_is_the_contract() -> None:
    (contract,) = [c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    layers = [set(layer.split(" | ")) for layer in contract["layers"]]
    text = ARCHITECTURE.split("In one line: ")[1].split(". The contracts")[0]
    written = [set(layer.split(", ")) for layer in text.replace("\n", " ").split(" > ")]
    assert written == layers


def test_the_files_of_the_architecture_exist() -> None:
    for path in re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|toml|md)|(?:\w+/)+)`", ARCHITECTURE):
        places = (ROOT / path, ROOT / "nmcompile" / path, *ROOT.glob(f"*/*/{path}"))
        assert any(place.exists() for place in places), path
