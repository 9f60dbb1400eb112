"""Code that was compiled for a forward, and is called where its inputs may be gradients.

Dynamo reuses code wherever its guards hold, and none of them asks who calls: a layer that was
compiled for an evaluation may be called by the backward of a Function, without gradients as there.
Only the engine is asked for, at each call: looking at the stack would take longer than the call.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from nmcompile._dynamo import in_engine
from nmcompile.capture.surroundings import doubt as doubt_of
from nmcompile.errors import NMWarning
from nmcompile.report.report import GraphReport


def may_be_reused(gm: fx.GraphModule) -> bool:
    """Whether a graph that is compiled now could be called by a backward later.

    One that is compiled with gradients is called in a backward by what computes a forward once
    more, and by nothing else but derivatives of derivatives, which AOTAutograd has not.
    """
    return not torch.is_grad_enabled() and doubt_of(gm) is None


def dense_elsewhere(
    compiled: Callable[..., Any], original: fx.GraphModule, reports: list[GraphReport]
) -> Callable[..., Any]:
    """``compiled``, but ``original`` as it is wherever an input may be a gradient.

    Args:
        compiled: made of ``original``.
        original: the graph that Dynamo captured.
        reports: of ``compiled``: where nothing is pruned in it, it runs everywhere.
    """
    if not any(site.pruned for report in reports for site in report.sites):
        return compiled

    @functools.wraps(compiled)
    def run(*args: Any) -> Any:
        doubt = doubt_of(original) if in_engine() else None
        if doubt is None:
            return compiled(*args)
        warnings.warn(
            f"code that was compiled for a forward is called again, and runs dense and eagerly "
            f"there: {doubt}",
            NMWarning,
            stacklevel=2,
        )
        return original(*args)

    return run
