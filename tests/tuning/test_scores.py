"""Costs from what was measured."""

from __future__ import annotations

import pytest
import torch

from nmcompile.dry_run import fresh
from nmcompile.gemm import OperandKind, Role
from nmcompile.tuning.measure import Moments
from nmcompile.tuning.products import Choice
from nmcompile.tuning.scores import measured_terms, rows_of, variance
from nmcompile.tuning.session import Session
from tests.tuning.nets import Blocks, vectors

CHOICES = [Choice(OperandKind.ACTIVATION, "2:4"), Choice(OperandKind.GRADIENT, "2:4")]


@pytest.fixture(scope="module")
def session() -> Session:
    torch.manual_seed(0)
    session = Session(fresh(Blocks()), vectors(4), CHOICES, None)
    session.measure(None, lambda: None)
    return session


def test_the_variance_is_that_of_the_batches() -> None:
    values = torch.randn(5, 7)
    squares, total = values.square().sum().item(), values.sum(0).square().sum().item()
    assert variance(squares, total, 5) == pytest.approx(values.var(0).sum().item(), rel=1e-5)
    assert variance(1.0, 2.0, 2) == 0.0


def test_terms_make_the_costs_add_up_to_the_increase() -> None:
    moments = [Moments(first=0.2, second=0.01), Moments(first=0.1, second=0.03)]
    terms = measured_terms(moments, batches=2, increase=0.65)
    assert terms is not None
    assert sum(m.first + terms / 2 * m.second for m in moments) / 2 == pytest.approx(0.65)
    assert measured_terms(moments, batches=2, increase=0.1) is None  # pruning does no harm
    assert measured_terms([Moments()], batches=2, increase=0.1) is None


def test_the_cost_of_a_forward_product_is_its_formula(session: Session) -> None:
    sums = session.measured.sums
    rows = rows_of(session.measured.found, sums, 24.0, 0.5, timed=False)
    row = next(r for r in rows if r.module == "blocks.1.up" and r.role is Role.FPROP)
    (m,) = (m for (slot, _), m in sums.moments.items() if slot.key == row.key)
    assert row.costs[0].loss == pytest.approx((abs(m.first) + 12 * m.second) / 4)
    assert row.costs[0].gain == row.flops / 2 == 24 * 16 * 32


def test_noise_is_weighed_by_the_share_of_the_weights(session: Session) -> None:
    rows = rows_of(session.measured.found, session.measured.sums, 24.0, 0.5, timed=False)
    sizes = {r.module: (256 if r.module == "head" else 512) for r in rows}
    sizes["head"] = 128
    total = sum(sizes.values())
    for row in rows:
        if row.role is not Role.WGRAD:
            continue
        (cost,) = row.costs
        assert cost.noise == pytest.approx(cost.ratio * sizes[row.module] / total)
        assert cost.loss == cost.noise * 0.5


def test_equal_batches_have_no_variance_and_no_gradient_is_pruned() -> None:
    batch = vectors(1)[0]
    session = Session(fresh(Blocks()), [batch, batch], CHOICES, None)
    session.measure(None, lambda: None)
    rows = rows_of(session.measured.found, session.measured.sums, 24.0, 0.5, timed=False)
    ratios = [c.ratio for r in rows if r.role is Role.WGRAD for c in r.costs]
    assert all(ratio is not None and ratio > 1e3 for ratio in ratios)
