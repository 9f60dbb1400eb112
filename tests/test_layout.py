"""The layout: files are small, and the tests mirror the package.

``tests/<room>/test_<module>.py`` is about ``nmcompile/<room>/<module>.py``, and
``tests/test_<module>.py`` about a module at the top (``_torch`` without its underscore).
"""

from __future__ import annotations

from pathlib import Path

import nmcompile

TESTS = Path(__file__).parent
PACKAGE = Path(nmcompile.__file__).parent

#: Files of tests that are about no single module, and what they are about.
ACROSS = {
    "test_layout.py": "the tree itself",
    "test_private_apis.py": "both doors to private PyTorch, and that there is no third",
    "test_project_files.py": "the pages and files of the project",
    "test_public_api.py": "the package's names",
    "test_start_up.py": "what an import costs",
    "passes/test_writing_passes.py": "the page that teaches to write a pass",
}
#: Folders of tests that are about the package as a whole, or about what lies beside it.
BESIDE = {
    *("benchmarks", "distributed", "docs", "end_to_end", "fuzzing", "kernels", "setups", "tools"),
    *("trainers", "zoo"),
}


def modules() -> list[str]:
    """Every module by its path; the functions of ``codegen/device`` are those of ``kernels``."""
    found = [p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]
    return [str(p) for p in found if p.parts[:2] != ("codegen", "device")]


def mirrored(module: str) -> str:
    """The file of a module's tests."""
    path = Path(module)
    return str(path.with_name(f"test_{path.name.lstrip('_')}"))


def files_of_tests() -> set[str]:
    """Every file of tests in a room or at the top."""
    found = [p.relative_to(TESTS) for p in TESTS.rglob("test_*.py")]
    return {str(p) for p in found if p.parts[0] not in BESIDE}


def test_every_module_has_its_tests() -> None:
    assert [module for module in modules() if mirrored(module) not in files_of_tests()] == []


def test_every_file_of_tests_has_its_module() -> None:
    assert files_of_tests() <= {*map(mirrored, modules()), *ACROSS}


def test_every_folder_of_tests_is_a_room_or_beside_them() -> None:
    folders = {p.relative_to(TESTS).parts[0] for p in TESTS.rglob("*.py") if p.parent != TESTS}
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders == rooms | BESIDE


def test_files_are_small() -> None:
    lines = {str(p): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lines.items() if n > 400} == {}
    assert sum(n < 150 for n in lines.values()) >= len(lines) / 2
