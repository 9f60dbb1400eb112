"""What is found in a graph: products, what may be pruned, and where gradients stand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmcompile.dry_run import explain, fresh
from nmcompile.gemm import OperandKind, Role
from nmcompile.tuning.products import Choice, Gradient
from nmcompile.tuning.session import Session
from tests.execution.gpus import H200
from tests.tuning.nets import Blocks, Classifier, images, vectors

CHOICES = [Choice(OperandKind.ACTIVATION, "2:4"), Choice(OperandKind.GRADIENT, "1:2")]


@pytest.mark.parametrize(("model", "batch"), [(Classifier(), images(1)), (Blocks(), vectors(1))])
def test_the_products_are_those_of_the_report(model: nn.Module, batch: list[object]) -> None:
    session = Session(fresh(model), batch, CHOICES, None)  # type: ignore[arg-type]
    session.loss(0)
    found = session.measured.found.products
    report = explain(model, *batch[0], policy="full")  # type: ignore[misc]
    assert [(p.slot.key.module, p.slot.key.role) for p in found] == [
        (s.module, s.role) for s in report.sites
    ]
    for product, site in zip(found, report.sites, strict=True):
        assert {c.kind for c in product.ways} == ({site.pruned} if site.pruned else set())
        assert product.flops == site.flops


def test_where_the_gradient_of_a_result_stands() -> None:
    session = Session(fresh(Blocks()), vectors(1), CHOICES, None)
    session.loss(0)
    found = session.measured.found.products
    backward = [p for p in found if p.gemm.role is not Role.FPROP]
    for p in backward:
        assert p.forward is not None
        assert found[p.forward].slot.key.module == p.slot.key.module
    # dX = dY W, and dW = dY^T X: each forward product is measured at one of the two
    ways = [(p.gemm.role, p.gradient) for p in backward if p.gradient]
    expected = {(Role.DGRAD, Gradient("self", False)), (Role.WGRAD, Gradient("self", True))}
    assert set(ways) <= expected
    assert len(ways) == len({p.forward for p in backward}) == 7


def test_with_a_target_only_what_runs_sparse_there_has_a_way() -> None:
    net = nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 24)).to(torch.bfloat16)
    x = torch.randn(1024, 4096, dtype=torch.bfloat16)
    report = explain(lambda x: net(x).float().sum(), x, target=H200)
    session = Session(fresh(lambda x: net(x).float().sum()), [(x,)], [CHOICES[0]], H200)
    session.loss(0)
    found = [p for p in session.measured.found.products if p.gemm.role is Role.FPROP]
    sparse = [s.execution == "sparse" for s in report.sites if s.role == "fprop"]
    assert [bool(p.ways) for p in found] == sparse
    for p in found:
        assert all(way.seconds is not None and way.seconds > 0 for way in p.ways.values())


def test_a_choice_says_what_it_is() -> None:
    assert str(CHOICES[0]) == "activation 2:4"
    assert CHOICES[0].dropped == 0.5
    assert Choice(OperandKind.WEIGHT, "1:4").dropped == 0.75
