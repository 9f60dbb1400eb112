"""Sums over graphs that run once, several times or for several modules, and over what is eager."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nmcompile.gemm import OperandKind
from nmcompile.reason import Code, Reason
from nmcompile.report.rows import EagerRow
from nmcompile.report.totals import totals
from tests.report.samples import graph, site, skipped


def eager(flops: float | None, reason: Reason | None = None) -> EagerRow:
    return EagerRow(
        module="rnn", module_class="LSTM", target="aten.mm", calls=1, flops=flops, reason=reason
    )


def test_a_graph_counts_as_often_as_it_runs() -> None:
    row = site(dense_us=2.0)
    once, shared = graph(row), graph(row, region=("a", "b", "c"))
    counted = graph(row, region=("a", "b", "c"), calls=2)
    for found, runs in ((once, 1), (shared, 3), (counted, 2)):
        sums = totals([found], [])
        assert (sums.sites, sums.flops, sums.dense_us) == (runs, runs * 1024.0, runs * 2.0)


def test_products_of_a_size_that_is_data_are_counted_apart() -> None:
    sums = totals([graph(site(), site(flops=None, pruned=OperandKind.ACTIVATION))], [])
    assert (sums.sites, sums.pruned_sites, sums.unknown_sites, sums.flops) == (2, 1, 1, 1024.0)
    assert sums.pruned_share == 0.0


def test_what_is_eager_is_a_share_of_all_that_multiplies_but_attention() -> None:
    listed = replace(skipped(), flops=1024.0)
    fused = Reason(Code.FUSED_ATTENTION, "fused")
    sums = totals([graph(site(), skipped=(listed,))], [eager(2048.0), eager(9.9, fused)])
    assert (sums.listed_flops, sums.eager_flops) == (1024.0, 2048.0)
    assert sums.eager_share == pytest.approx(0.5)
    assert totals([], [eager(None)]).eager_share == 0.0
