"""The passes on a joint (or inference) graph, in the order in which they run."""

from __future__ import annotations

import logging
import time

from nmcompile.errors import owned
from nmcompile.passes.assign import assign
from nmcompile.passes.exact_backward import exact_backward
from nmcompile.passes.find import find
from nmcompile.passes.plan import Plan
from nmcompile.passes.prune_products import prune_backward, prune_forward
from nmcompile.passes.save_kept import save_kept
from nmcompile.passes.share_compressed import share_compressed
from nmcompile.passes.split_convolution_backward import split_convolution_backward

log = logging.getLogger(__name__)

PASSES = (
    find,  # every product: role, operand kinds, reduction dimension; mutates nothing
    assign,  # the rule that decides each, and what it gets; mutates nothing
    split_convolution_backward,  # dgrad and wgrad of a pruned convolution: a node each
    prune_forward,  # operands of fprop products
    exact_backward,  # where asked: mask the gradient, let wgrad read the pruned operand
    prune_backward,  # operands of dgrad and wgrad products
    save_kept,  # what only a masked gradient reads is saved at the kept places alone
    share_compressed,  # one read of a tensor writes all its compressed forms
)


def run(plan: Plan) -> Plan:
    """Run every pass on ``plan.graph``; the graph is changed in place.

    Raises:
        PolicyError: a rule asks for what a site cannot have and says ``fallback = "error"``.
        NMError: a pass failed; the message names it.
    """
    for step in PASSES:
        start = time.perf_counter()
        with owned(f"pass {step.__name__}"):
            step(plan)
        log.debug(
            "%s: %d products, %d pruned, %.1f ms",
            step.__name__,
            len(plan.gemms),
            sum(d.pruning is not None for d in plan.decisions),
            1e3 * (time.perf_counter() - start),
        )
    return plan
