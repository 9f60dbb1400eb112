"""``docs/writing_passes.md``, followed word by word in a copy of the package.

Every block of Python goes into the file that the page names above it, at the place that it names;
then the page's own commands are run there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "writing_passes.md").read_text()
NAME = "drop_double_transposes"


class Block(NamedTuple):
    """A block of code: the file that it belongs into, and where; nowhere is a file of its own."""

    path: str
    place: str
    code: str


BLOCKS = [
    Block(*found)
    for found in re.findall(
        r"^`([\w/]+\.py)`(?:, ([^\n]+))?:\n\n```python\n(.*?)```", TEXT, re.M | re.S
    )
]


def follow(block: Block, root: Path) -> None:
    """Write the block where the page says."""
    path = root / block.path
    if not block.place:
        assert not path.exists()
        path.write_text(block.code)
        return
    before = path.read_text()
    if block.place == "at the end":
        after = f"{before}\n\n{block.code}"
    elif block.place == "among the imports":
        first = "from __future__ import annotations\n"
        assert first in before
        after = before.replace(first, f"{first}\n{block.code}", 1)
    elif block.place == "the last entry of `JOINT`":
        head, start, rest = before.partition("\nJOINT: ")
        entries, end, rest = rest.partition("\n)\n")
        entry = textwrap.indent(block.code.rstrip(), "    ")
        after = f"{head}{start}{entries}\n{entry},{end}{rest}"
    else:
        raise AssertionError(f"the page says {block.place!r}: say here where that is")
    path.write_text(after)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package in which the page has been followed, with the tests that it needs."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "nmcompile", root / "nmcompile", ignore=shutil.ignore_patterns("__py*"))
    (root / "tests" / "passes").mkdir(parents=True)
    needed = ("__init__.py", "conftest.py", "passes/__init__.py", "passes/plans.py")
    for path in ("pyproject.toml", *(f"tests/{name}" for name in needed)):
        shutil.copy(ROOT / path, root / path)
    for block in BLOCKS:
        follow(block, root)
    return root


def command(start: str) -> list[str]:
    """The arguments of the page's command that begins so, without what comes before ``python``."""
    (line,) = re.findall(rf"^    (?:\w+=\S+ )*({start}.*)$", TEXT, re.M)
    words: list[str] = line.split()
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


def execute(arguments: list[str], root: Path, **environment: str) -> str:
    """All that the command writes, run in the copy."""
    done = subprocess.run(
        arguments,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_every_block_has_a_place() -> None:
    assert TEXT.count("```python") == len(BLOCKS) > 0
    assert len({(b.path, b.place) for b in BLOCKS}) == len(BLOCKS)


def test_what_the_page_shows_is_what_one_sees() -> None:
    """The lines of the graph before there is such a pass."""
    (look,) = (b for b in BLOCKS if b.path == "look.py")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(look.code, look.path, "exec"), {})
    (shown,) = re.findall(r"\n\n```\n(.*?)```", TEXT.split("## The pass")[0], re.S)
    seen = [line.strip() for line in output.getvalue().splitlines()]
    lines = [line for line in shown.splitlines() if line != "..."]
    assert len(lines) == 3
    assert [line for line in seen if line in lines] == lines


@pytest.mark.slow
def test_the_tests_of_the_page_pass_under_the_checks(package: Path) -> None:
    """Its contract is broken among them, and the fact named that says so."""
    assert "NMCOMPILE_CHECK_PASSES" in (package / "tests" / "conftest.py").read_text()
    arguments = command("python -m pytest")
    assert arguments[-1] == f"tests/passes/test_{NAME}.py"
    said = execute([*arguments, "-n", "0", "-p", "no:cacheprovider"], package)
    (test,) = (b for b in BLOCKS if b.path == arguments[-1])
    assert "left a graph in which no_double_transposes: mm reads" in test.code
    assert f"{test.code.count('def test_')} passed" in said


@pytest.mark.slow
def test_its_dump_appears_in_the_log_and_in_the_trace(package: Path) -> None:
    trace = package / "trace"
    look = command("python look.py")
    log = execute(look, package, TORCH_LOGS="+nmcompile", TORCH_TRACE=str(trace))
    titles = re.findall(r"`(joint graph, \d\d \w+)`", TEXT)
    assert [title.split()[-1] for title in titles] == ["before", NAME]
    parts = re.split(r"(joint graph, \d\d \w+):\n", log)
    assert parts[1::2] == titles  # dense: no other pass changes anything
    assert "mm.default(tangents_1, permute_3)" in parts[2]
    assert "mm.default(tangents_1, primals_1)" in parts[4]
    (artifact,) = re.findall(rf"`(nmcompile_\w+_{NAME})`", TEXT)
    (written,) = trace.iterdir()
    assert f'"name": "{artifact}"' in written.read_text()
