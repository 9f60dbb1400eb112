"""The version of a graph that a sampled step runs, beside the one that all others run.

Both are compiled at the same time, for the same inputs, with the same passes and random numbers.
The second one shows what it prunes to a meter. Which of the two runs is asked at each call.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.capture.inputs import Capture
from nmcompile.errors import NMWarning
from nmcompile.inductor.hooks import JointPass, PostPass
from nmcompile.inductor.options import Settings
from nmcompile.ops.observe import SAMPLES
from nmcompile.report.report import GraphReport


def is_observed(settings: Settings, reports: Sequence[GraphReport]) -> bool:
    """Whether there is something to see in a graph: it trains, and something is pruned in it."""
    pruned = any(site.pruned for report in reports for site in report.sites)
    return settings.observer is not None and torch.is_grad_enabled() and pruned


def shown_to_meter(
    gm: fx.GraphModule, inputs: Sequence[Any], settings: Settings, capture: Capture
) -> Callable[..., Any]:
    """Compile a version of a captured graph that shows a meter what it prunes.

    Args:
        gm: a copy of the graph that Dynamo captured, for these ``inputs``.
        settings: with an observer.
        capture: of the graph.
    """
    # What shows something calls Python: no replay of a CUDA graph does, nor does a wrapper in C++.
    python = {"triton.cudagraphs": False, "cpp_wrapper": False}
    settings = replace(settings, inductor={**settings.inductor, **python})
    joint = JointPass(settings, capture, build_kernels=False)
    post = PostPass(settings, joint.digest)
    hooks = {"joint_custom_pre_pass": joint, "post_grad_custom_pre_pass": post}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NMWarning)  # the other version has said it
        with _torch.functorch_config.patch(force_non_lazy_backward_lowering=True):
            compiled: Callable[..., Any]
            compiled = _torch.compile_fx(gm, inputs, {**settings.inductor, **hooks})
    return compiled


def sampled(
    compiled: Callable[..., Any], observed: Callable[..., Any], meter: int | None
) -> Callable[..., Any]:
    """``compiled``, but ``observed`` while the meter takes a sample."""

    @functools.wraps(compiled)
    def run(*args: Any) -> Any:
        return (observed if meter in SAMPLES else compiled)(*args)

    return run
