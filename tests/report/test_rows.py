"""The rows of a report: times as decided, and the terms of a unit."""

from __future__ import annotations

import pytest

from nmcompile.compressed.layouts import Layout
from nmcompile.execution.cost import Kind, Predicted, Product
from nmcompile.execution.units import Unit, decide
from nmcompile.masks.formats import Method
from nmcompile.report.rows import UnitRow
from tests.execution.gpus import H100
from tests.report.samples import graph, site

CLOCK = Predicted(H100)
KIND = Kind(Method.MSE, Layout.CUSPARSELT_SM90)


def unit(number: int = 0, columns: int = 14336, **keys: int) -> Unit:
    products = [Product(2 * number + i, 16384, columns, 4096, **keys) for i in range(2)]
    return decide(number, products, KIND, CLOCK, margin=1.05)


def test_a_product_takes_its_time_as_it_was_decided() -> None:
    times = {"dense_us": 3.0, "sparse_us": 2.0}
    assert site(**times, execution="sparse").planned_us == 2.0
    assert site(**times, execution="simulate").planned_us == 3.0
    assert site().planned_us is None


def test_the_terms_of_a_unit_add_up() -> None:
    row = UnitRow.of(unit())
    assert (row.unit, row.sites, row.sparse, row.how) == (0, (0, 1), (0, 1), "predicted")
    assert set(row.terms_us) == {"dense", "product", "compress"}
    assert row.terms_us["product"] + row.terms_us["compress"] == pytest.approx(row.sparse_us)
    assert str(row) == (
        "2 of 2 sparse, predicted: dense 4828 us, product 3578 + compress 76 = 3654 us (1.32x)"
    )


def test_an_exact_backward_is_shown_beside_the_sum() -> None:
    row, plain = UnitRow.of(unit(unpacked=2)), UnitRow.of(unit())
    assert row.sparse_us == plain.sparse_us
    assert str(row) == f"{plain}, exact backward {row.terms_us['exact']:.0f} us more"


def test_decisions_are_the_same_whatever_was_measured() -> None:
    """Ranks compare them, and measure each for itself."""
    reports = [graph(site(dense_us=us, sparse_us=us / 2, unit=0)) for us in (1.0, 2.0)]
    assert reports[0].decisions_digest == reports[1].decisions_digest
    assert reports[0].decisions_digest != graph(site(execution="sparse")).decisions_digest
