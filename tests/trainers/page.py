"""The examples of ``docs/trainers.md`` and other pages, run as they stand there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

import nmcompile

DOCS = Path(__file__).resolve().parents[2] / "docs"


def example(heading: str, of: str = "trainers.md") -> str:
    """The block of code under a heading."""
    (code,) = blocks(heading, of=of)
    return code


def blocks(*headings: str, of: str) -> list[str]:
    """Every block of code under some headings of a page."""
    sections = re.split(r"^## ", (DOCS / of).read_text(), flags=re.M)
    texts = [s for h in headings for s in sections if s.startswith(h + "\n")]
    assert len(texts) == len(headings)
    return [str(code) for text in texts for code in re.findall(r"```python\n(.*?)```", text, re.S)]


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
        exec(compile(code, "example", "exec"), found)
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
