"""How far noise reaches: against the noise that it really is."""

from __future__ import annotations

import pytest
import torch

from nmcompile.dry_run import fresh
from nmcompile.gemm import OperandKind, Role
from nmcompile.tuning.flow import Flow, Step
from nmcompile.tuning.products import Choice
from nmcompile.tuning.scores import rows_of, variance
from nmcompile.tuning.session import Session
from tests.tuning.nets import Blocks, vectors


def test_a_sum_dilutes_a_branch_by_its_energy() -> None:
    """0 is handed down by product 7; 3 adds it to 2, which has none of it."""
    steps = [
        Step((), source=7),
        Step((0,)),
        Step(()),
        Step((1, 2), sum=5),
        Step((3,), source=8),
    ]
    flow = Flow(steps, {20: 1, 21: 3, 22: 4})
    reached = flow.reached({5: [1.0, 3.0, 4.0]})
    assert reached[7] == {20: 1.0, 21: 0.25, 22: 0.25}
    assert reached[8] == {20: 0.0, 21: 0.0, 22: 1.0}


def test_without_energy_nothing_is_diluted() -> None:
    flow = Flow([Step((), source=7), Step(()), Step((0, 1), sum=5)], {20: 2})
    assert flow.reached({5: [0.0, 0.0, 0.0]})[7] == {20: 1.0}


@pytest.mark.slow
def test_the_noise_of_each_gradient_is_what_pruning_it_alone_adds() -> None:
    """Added variance of all weight gradients, one product pruned at a time, over their own."""
    torch.manual_seed(3)
    model, batches = Blocks(width=32), vectors(6, width=32)
    choice = Choice(OperandKind.GRADIENT, "2:4")
    session = Session(fresh(model), batches, [choice], None)
    session.measure(None, lambda: None)
    measured = session.measured
    rows = rows_of(measured.found, measured.sums, 1.0, 1.0, timed=False)
    names = dict(model.named_parameters())
    signals = {
        slot.key.module: signal
        for slot, signal in measured.sums.signals.items()
        if slot.key.role is Role.WGRAD
    }
    weights = [names[f"{path}.weight"] for path in signals]
    own = [
        variance(s.squares, s.total.square().sum().item(), len(batches))
        for s in signals.values()
        if s.total is not None
    ]
    size = sum(w.numel() for w in weights)

    def gradients(number: int, applied: bool, row: object = None) -> list[torch.Tensor]:
        loss = session.loss(number)
        measured.applied = {row: choice} if applied else {}  # type: ignore[dict-item]
        try:
            return list(torch.autograd.grad(loss, weights))
        finally:
            measured.applied = {}

    dense = [gradients(n, False) for n in range(len(batches))]
    for row in rows:
        if row.role is Role.FPROP or not row.costs:
            continue
        added = 0.0
        for number, before in enumerate(dense):
            after = gradients(number, True, row.key)
            for w, a, b, v in zip(weights, after, before, own, strict=True):
                added += w.numel() / size * (a - b).square().sum().item() / v / len(batches)
        noise = row.costs[0].noise
        assert noise is not None
        # wgrad is exact but for the draw; what dgrad hands down is an estimate.
        factor = 1.35 if row.role is Role.WGRAD else 3.0
        assert noise / factor - 1e-3 < added < noise * factor + 1e-3, (row.module, row.role)
