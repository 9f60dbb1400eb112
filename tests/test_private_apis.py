"""Private PyTorch APIs: in two files, each there is in this torch, and a missing one is named."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch

import nmcompile
from nmcompile import NMError
from nmcompile._torch import private

PACKAGE = Path(nmcompile.__file__).parent
HOMES = {"_torch.py", "_cuda.py", "_dynamo.py"}
#: torch._x, torch.y._x; not torch.ops.aten._x, which is an operator's name in a graph.
_PRIVATE = re.compile(r"\btorch(?!\.ops)(\.[a-z]\w*)*\._[a-zA-Z]")


def uses(path: Path) -> list[str]:
    """Imports and attributes of ``torch`` in the code of a file that begin with an underscore."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, (ast.Attribute, ast.Import)):
            found.append(ast.unparse(node).removeprefix("import "))
    return [text for text in found if _PRIVATE.match(text)]


def guarded(path: Path) -> list[str]:
    """Calls of ``private("module", "name")`` in a file, under whatever name it is known there."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "private"
    ]


def names() -> list[tuple[str, str]]:
    """Every ``private("module", "name")`` of the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1]
            if called == "private" and all(isinstance(a, ast.Constant) for a in node.args):
                found.add(tuple(a.value for a in node.args))
    return sorted(found)


def test_private_apis_live_in_three_files() -> None:
    elsewhere = {
        str(path.relative_to(PACKAGE)): found
        for path in PACKAGE.rglob("*.py")
        if path.name not in HOMES and (found := uses(path) + guarded(path))
    }
    assert elsewhere == {}


def test_in_these_files_each_is_guarded_by_name() -> None:
    for home in HOMES:
        assert uses(PACKAGE / home) == []
    assert len(names()) > 15


@pytest.mark.parametrize(("module", "name"), names())
def test_this_torch_has_it(module: str, name: str) -> None:
    if "cusparselt" in module and not torch.backends.cusparselt.is_available():
        pytest.skip("only builds with cuSPARSELt have it")
    if name.startswith("_cuda") and not torch.backends.cuda.is_built():
        pytest.skip("only builds with CUDA have it")
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("module", "name"), [("torch._inductor.compile_fx", "gone"), ("torch._gone", "x")]
)
def test_a_missing_one_is_named_with_the_version(module: str, name: str) -> None:
    with pytest.raises(
        NMError, match=re.escape(f"torch {torch.__version__} has no {module}.{name}")
    ):
        private(module, name)
