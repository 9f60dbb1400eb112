"""The examples of ``docs/trainers.md``, run as they stand there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

import nmcompile

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainers.md"


def example(heading: str) -> str:
    """The block of code under a heading."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    (text,) = [s for s in section if s.startswith(heading + "\n")]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return str(code)


def run(code: str) -> tuple[dict[str, Any], int]:
    """What the code leaves behind, and how many graphs Dynamo captured, from empty caches.

    Our own warnings are errors, those of libraries are not.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found: dict[str, Any] = {"__name__": "example"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", nmcompile.NMWarning)
        exec(compile(code, str(PAGE), "exec"), found)
    return found, int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def with_eager_backend(code: str) -> str:
    """The same code with a backend that changes nothing; Dynamo's graphs do not depend on it."""
    changed = re.sub(r'nmcompile\.compile\((.*), policy="full"\)', r"_traced(\1)", code)
    assert changed != code
    return f"{_TRACED}\n{changed}"


_TRACED = """
def _traced(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model
"""


def pruned_roles() -> set[str]:
    """The roles in which the newest compilation pruned something while it trained."""
    graphs = [graph for graph in nmcompile.last_report().graphs if graph.training]
    return {str(site.role) for graph in graphs for site in graph.sites if site.pruned}


ROLES = {"fprop", "dgrad", "wgrad"}
