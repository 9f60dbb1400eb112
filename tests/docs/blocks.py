"""The code of a page, run from its first line to its last in one namespace and one empty folder.

What happens to a block of which language, and how one is left out, says CONTRIBUTING.md ("Pages").
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest, mock

from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from nmcompile import Policy
from nmcompile.cli.app import run

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_python = PythonEvaluator()


def parse(page: Path) -> Document:
    """The blocks of a page that something is done with."""
    parsers = [
        CodeBlockParser("python", _run_python),
        CodeBlockParser("toml", _read_policy),
        CodeBlockParser("console", _run_commands),
        SkipParser(),
    ]
    return Document.parse(str(page), *parsers)


@dataclass
class Ran:
    """What the blocks of a page printed and left behind, and why some did not run."""

    namespace: dict[str, Any]
    printed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def run_page(page: Path) -> Ran:
    """Run the blocks of a page in the current folder; the first error ends it."""
    with mock.patch.dict(os.environ):
        return _run(parse(page))


def _run(document: Document) -> Ran:
    # Of a real module, which Dynamo wants to import where a function of the page comes from it.
    module = sys.modules["nm_page"] = ModuleType("nm_page")
    document.namespace = vars(module)
    ran = Ran(document.namespace)
    for example in document.examples():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                example.evaluate()
            except SkipTest as reason:
                ran.skipped.append(str(reason))
                continue
        if example.region.evaluator is _run_python:
            ran.printed.append(printed.getvalue())
    return ran


def _run_python(example: Example) -> None:
    if not _write(example):
        _python(example)


def _read_policy(example: Example) -> None:
    if not _write(example):
        Policy.loads(str(example.parsed), f"{example.path}:{example.line}")


def _write(example: Example) -> bool:
    """Whether the block is a file; then it is written."""
    named = re.match(r"# ([\w/]+\.(?:py|toml))\n", example.parsed)
    if named:
        Path(named[1]).write_text(str(example.parsed))
    return bool(named)


def _run_commands(example: Example) -> None:
    for line in example.parsed.splitlines():
        if line.startswith("$ nmcompile "):
            command, _, remark = line.removeprefix("$ nmcompile ").partition("  # ")
            wanted = int(remark.removeprefix("exit ")[:1]) if remark.startswith("exit ") else 0
            assert _exit_code(shlex.split(command)) == wanted, line


def _exit_code(arguments: list[str]) -> int:
    try:
        run(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
