"""The lines of a rewritten joint graph that a test is about."""

from __future__ import annotations

import re
from typing import Any

import nmcompile

_INTERESTING = re.compile(
    r"torch\.ops\.(nm\.|aten\.(mm|addmm|bmm|baddbmm|convolution|randint|where|sum\.dim))"
)


def rewritten(model: Any, *args: Any, policy: Any = "full", target: str | None = None) -> str:
    """Products, masks and seeds of every graph after the passes, one line each."""
    report = nmcompile.explain(model, *args, policy=policy, target=target)
    return "\n".join(interesting(graph.after) for graph in report.graphs) + "\n"


def interesting(code: str) -> str:
    """The lines of generated graph code that hold products, masks or seeds."""
    lines = (line.split(";")[0].strip() for line in code.splitlines())
    return "\n".join(
        line.replace("torch.ops.", "").replace(".default(", "(")
        for line in lines
        if _INTERESTING.search(line) and not line.startswith("#")
    )
