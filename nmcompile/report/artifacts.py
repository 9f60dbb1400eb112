"""What the tools of torch.compile show of a graph: artifacts of its trace, files for debugging.

    TORCH_TRACE=folder       nmcompile_plan, nmcompile_policy, nmcompile_joint_graph_before, ...:
                             tlparse lists them under the compile id, beside Inductor's own
    TORCH_COMPILE_DEBUG=1    the same as files, in model__0_joint_0.nmcompile beside Inductor's
                             model__0_forward_1.0

Both have the plan where no pass ran, since the graph came from the cache; it says so.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from nmcompile import _torch
from nmcompile.policy import Policy
from nmcompile.report import text
from nmcompile.report.report import GraphReport, Report

log = logging.getLogger(__name__)

_STORED = (
    "This graph came from the cache and no pass ran: the plan is the one that was stored when the "
    "graph was compiled.\n"
)
_WIDTH = 150


def show_plan(report: GraphReport, policy: Policy, stored: bool = False) -> None:
    """Show what was decided for a graph that is being compiled, and the graph before and after.

    Args:
        stored: no pass ran; the report was kept beside the cache.
    """
    if not _wanted():
        return
    whole = Report(policy=policy.to_toml(), graphs=(report,), unused_rules=())
    kind = "joint" if report.training else "inference"
    _show(
        {
            "plan.txt": f"{_STORED if stored else ''}{text.plain(whole, _WIDTH, numbered=False)}",
            "policy.toml": whole.policy,
            f"{kind}_graph_before.py": report.before,
            f"{kind}_graph_after.py": report.after,
        }
    )


def show_kernels(sources: Callable[[], Mapping[str, str]]) -> None:
    """Show the source of the kernels of a graph that is being compiled.

    Args:
        sources: gives them, by file name; called where somebody listens.
    """
    if _wanted() and (found := sources()):
        parts = (f"# ---- {name}\n\n{source}" for name, source in found.items())
        _show({"kernels.py": "\n\n".join(parts)})


def _wanted() -> bool:
    return _torch.is_traced() or _torch.debug_folder() is not None


def _show(files: Mapping[str, str]) -> None:
    if _torch.is_traced():
        for name, content in files.items():
            _torch.trace_artifact(f"nmcompile_{Path(name).stem}", content)
    if (folder := _torch.debug_folder()) is not None:
        try:
            _write(folder, files)
        except OSError as error:
            log.warning("no files for debugging in %s: %s", folder, error)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write them where none of that name is: a graph may call others, which have its name."""
    name = f"{_torch.graph_name()}.nmcompile"
    for number in itertools.count():
        own = folder / (f"{name}.{number}" if number else name)
        own.mkdir(parents=True, exist_ok=True)
        try:
            for file, content in files.items():
                with (own / file).open("x", encoding="utf-8") as opened:
                    opened.write(content)
        except FileExistsError:
            continue
        log.warning("debug trace: %s", own)  # as Inductor says it
        return
