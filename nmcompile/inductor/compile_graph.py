"""Compile one captured graph with our passes inside of Inductor."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from torch import fx

from nmcompile import _torch
from nmcompile.capture.inputs import Capture
from nmcompile.capture.ranks import check_plans, check_seeds
from nmcompile.errors import NMWarning
from nmcompile.graph.higher_order import reachable
from nmcompile.inductor.hooks import JointPass, PostPass
from nmcompile.inductor.kept_inputs import masks_appended, rows_of, with_kept_masks
from nmcompile.inductor.observed import is_observed, sampled, shown_to_meter
from nmcompile.inductor.options import Settings
from nmcompile.inductor.plan_only import kept_rows, plan_only
from nmcompile.inductor.reused import dense_elsewhere, may_be_reused
from nmcompile.report.artifacts import show_kernels, show_plan
from nmcompile.report.report import GraphReport, Report
from nmcompile.report.stored import StoredReports

log = logging.getLogger(__name__)


def compile_graph(
    gm: fx.GraphModule, inputs: Sequence[Any], settings: Settings
) -> tuple[Any, list[GraphReport]]:
    """Compile with Inductor and our passes; the report is right on a warm cache as well."""
    capture = Capture.of(gm, inputs)
    plain = replace(settings, observer=None)
    joint = JointPass(plain, capture, build_kernels=True)
    stored = StoredReports(joint.digest)
    known = stored.load()
    reusable = may_be_reused(gm)
    needed = known is None or reusable or settings.observer is not None
    spare = fx.GraphModule(gm, copy.deepcopy(gm.graph)) if needed else None
    rows = kept_rows(gm, inputs, plain, capture) if known is None else rows_of(known)
    capture = capture.with_masks([(row.input, row.stored) for row in rows])
    joint.capture = capture
    post = PostPass(plain, joint.digest)
    hooks = {"joint_custom_pre_pass": joint, "post_grad_custom_pre_pass": post}
    with _donation(gm), masks_appended(gm, inputs, rows) as given:
        compiled = _torch.compile_fx(gm, given, {**settings.inductor, **hooks})
    compiled = with_kept_masks(compiled, rows)
    reports = joint.reports or known
    if reports is None:
        assert spare is not None
        log.info("warm cache without a stored report: tracing once more to plan again")
        again = fx.GraphModule(spare, copy.deepcopy(spare.graph))
        reports = plan_only(again, inputs, plain).reports
    if reports is not known:
        stored.save(reports)
    else:
        for report in reports:
            show_plan(report, settings.policy, stored=True)
        for text in dict.fromkeys(text for report in reports for text in report.warnings):
            warnings.warn(text, NMWarning, stacklevel=2)
    if not post.ran:
        show_kernels(Report.of(settings.policy, tuple(reports)).kernel_sources)
    if capture.ranks is not None:
        ours = (settings.policy.to_toml(), settings.autotune, settings.kernels, settings.region)
        decided = [report.decisions_digest for report in reports]
        check_plans(capture.fingerprint, repr(ours), repr(decided))
        for sharing in {report.sharing for report in reports if report.sharing}:
            check_seeds(sharing)
    if reusable and spare is not None:
        compiled = dense_elsewhere(compiled, spare, reports)
    if spare is not None and is_observed(settings, reports):
        with _donation(gm), masks_appended(spare, inputs, rows) as given:
            observed = shown_to_meter(spare, given, settings, capture)
        compiled = sampled(compiled, with_kept_masks(observed, rows), settings.observer)
    return compiled, reports


def _donation(gm: fx.GraphModule) -> AbstractContextManager[Any]:
    """Whether a backward may write into what its forward has saved, as AOTAutograd finds it safe.

    A region's forward may save its own input, which PyTorch takes for a tensor of the region's: the
    backward would write into the user's tensor (seen in torch 2.13). And Inductor takes the numbers
    of the caller's inputs that may be written into for those of the region's.
    """
    if len(reachable(gm.graph)) == 1:
        return nullcontext()
    patched: AbstractContextManager[Any] = _torch.functorch_config.patch(donated_buffer=False)
    return patched
