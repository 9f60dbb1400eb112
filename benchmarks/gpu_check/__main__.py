"""``python -m benchmarks.gpu_check``: checks what can be imported, then runs ``cli``."""

from __future__ import annotations

import importlib.util
import sys
import traceback

#: What a checkout needs beside Python, by import name; PyPI's name where it differs.
NEEDED = {
    "torch": "torch",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "typing_extensions": "typing-extensions",
    "tomli_w": "tomli-w",
    "jinja2": "jinja2",
    "rich": "rich",
    "typer": "typer",
    "pygments": "pygments",
}


def missing_packages() -> list[str]:
    """PyPI's names of what cannot be imported."""
    return [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]


def main() -> None:
    """Say what is missing, or run."""
    advice = "Carry wheels and put them on PYTHONPATH: benchmarks/README.md has the commands."
    if missing := missing_packages():
        names = ", ".join(missing)
        sys.exit(f"cannot start: {names} not importable by {sys.executable}. {advice}")
    try:
        from benchmarks.gpu_check.cli import app
    except (ImportError, SystemError):  # pydantic says so of a core of another version
        traceback.print_exc()
        sys.exit(f"cannot start: see above. {advice}")
    app()


if __name__ == "__main__":
    main()
