"""Every block of code of every page runs, or says why it does not."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest

import nmcompile
from tests.docs.blocks import PAGES, ROOT, parse, run_page

#: Pages with a block to run.
RUN = [page for page in PAGES if any(parse(page).examples())]
#: What stands on pages that need a package of an extra, and that package.
EXTRAS = {
    "safetensors": "safetensors",
    "transformers": "transformers",
    "from peft": "peft",
    "html": "fast_sugiyama",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the page's files are written and found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda p: p.stem)
def test_the_blocks_run(page: Path, folder: Path) -> None:
    for word, package in EXTRAS.items():
        if word in page.read_text():
            pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", nmcompile.NMWarning)
        run_page(page)


def test_the_pages_of_a_newcomer_have_blocks() -> None:
    assert {"README", "CONTRIBUTING", "start", "policies_by_example"} < {p.stem for p in RUN}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_is_left_out_says_why(page: Path) -> None:
    for reason in re.findall(r"<!--+ *skip:(.*?)-->", page.read_text(), re.S):
        action, _, why = reason.strip().partition(" ")
        assert action == "end" or re.fullmatch(r'"[^"]{10,}"', why.strip()), reason
        for path in re.findall(r"\b(?:tests|examples)/[\w/.]+", why):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_no_block_is_of_a_language_that_nobody_runs(page: Path) -> None:
    opened = re.findall(r"^```(\w+)$", page.read_text(), re.M)
    assert set(opened) <= {"python", "toml", "console", "text"}


def test_a_block_that_fails_is_found(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page)
    page.write_text("```console\n$ nmcompile policy check none.toml\n```\n")
    with pytest.raises(AssertionError):
        run_page(page)
    page.write_text("```console\n$ nmcompile policy check none.toml  # exit 1\n```\n")
    run_page(page)
    page.write_text("```toml\n[[rule]]\nrole = 'wgard'\n```\n")
    with pytest.raises(nmcompile.PolicyError, match="did you mean 'wgrad'"):
        run_page(page)


def test_what_contributing_prints() -> None:
    by_hand, report = run_page(ROOT / "CONTRIBUTING.md").printed
    assert "Role.FPROP" in by_hand
    assert re.search(
        r"pruned = torch.ops.nm.prune.default\(x_1, .*mm.default\(pruned, t\)", by_hand, re.S
    )
    assert "torch.ops.nm.prune" in report
