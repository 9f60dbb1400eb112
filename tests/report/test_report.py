"""The report: totals, JSON and text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import nmcompile
from nmcompile import Policy, Report
from nmcompile.report.rows import UnitRow
from tests.report.net import Net
from tests.report.samples import graph, site


@pytest.fixture
def report() -> Report:
    return nmcompile.explain(Net(), torch.randn(4, 4, 6, 6))


def test_totals(report: Report) -> None:
    conv, head = 2 * 4 * 16 * 8 * 36, 2 * 4 * 6 * 8
    totals = report.totals
    assert totals.flops == 2 * conv + 3 * head
    assert totals.pruned_share == 1.0
    assert totals.skipped_share == 0.5
    assert (totals.sites, totals.pruned_sites) == (5, 5)


def test_json_is_stable_and_complete(report: Report, tmp_path: Path) -> None:
    data = json.loads(report.to_json(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text()) == data
    assert data["schema_version"] == 3
    assert sorted(data) == [
        *(
            "cuda_graphs",
            "eager",
            "graphs",
            "notes",
            "policy",
            "schema_version",
            "target",
            "totals",
        ),
        *("uncompiled", "unused_rules"),
    ]
    assert sorted(data["graphs"][0]) == [
        "after", "before", "calls", "digest", "kept", "kernel_specs", "modules", "nodes_after",
        "nodes_before", "operator", "region", "saved", "sharing", "sites", "skipped", "times",
        "training", "units", "warnings",
    ]  # fmt: skip
    assert data["graphs"][0]["sites"][0] == {
        "site": 0,
        "module": "conv",
        "module_class": "Conv2d",
        "op": "conv",
        "target": "aten.convolution",
        "role": "fprop",
        "sizes": ["1", "64", "8", "36"],
        "flops": 36864.0,
        "dtype": "float32",
        "device": "cpu",
        "operands": ["activation", "weight"],
        "dims": [1],
        "pruned": "activation",
        "format": "2:4",
        "method": "mse",
        "backward": "straight-through",
        "execution": "simulate",
        "layout": None,
        "dense_us": None,
        "sparse_us": None,
        "unit": None,
        "rule": "recipe full, rule 1",
        "weight": None,
        "reasons": [
            {"code": "auto-simulates", "text": "auto: no sparse tensor core product on cpu"}
        ],
        "guess": None,
    }
    assert Policy.loads(data["policy"]) == Policy.recipe("full")


def test_text_has_a_row_per_site_and_the_totals(report: Report) -> None:
    text = str(report)
    assert "activation 2:4 mse" in text
    assert "5 of 5 products pruned: 100.0% of" in text
    assert text.count("recipe full, rule") == 5
    assert text.count("auto: no sparse tensor core product") == 1  # once, not in every row


def test_graphs_before_and_after_are_code(report: Report) -> None:
    (graph,) = report.graphs
    assert graph.training
    assert "torch.ops.nm.prune" in graph.after
    assert "torch.ops.nm.prune" not in graph.before
    assert "nm: fprop activation 2:4 mse @ conv" in graph.after


def test_only_a_users_own_rules_are_listed_as_unused() -> None:
    text = 'schema = 1\nextends = "full"\n\n[[rule]]\ndense = true\n'
    policy = Policy.loads(text, origin="recipe of mine.toml")  # no recipe, whatever its name
    assert Report.of(policy, ()).unused_rules == ("recipe of mine.toml:4 (rule 1)",)


def test_times_and_units_are_lines_and_totals() -> None:
    times = {"dense_us": 3000.0, "sparse_us": 2000.0}
    row = {"sites": (0,), "sparse": (0,), "how": "predicted", "dense_us": 3000.0}
    terms = {"dense": 3000.0, "product": 1900.0, "compress": 100.0, "exact": 400.0}
    units = [UnitRow(unit=n, sparse_us=2000.0, terms_us=terms, **row) for n in range(2)]
    sites = site(**times, execution="sparse"), site(**times), site()
    report = Report.of(Policy.recipe("full"), (graph(*sites, units=tuple(units)),))
    totals = report.totals
    assert (totals.dense_us, totals.planned_us, totals.untimed_sites) == (6000, 5800, 1)
    text = str(report)
    assert "unit 0, 1: 1 of 1 sparse, predicted: dense 3000 us, product 1900 + compress 100" in text
    assert "products of a step 6.00 ms dense, 5.80 ms as decided (1.03x), 1 products with" in text


def test_nothing_is_said_of_times_where_none_is_known() -> None:
    report = Report.of(Policy.recipe("full"), (graph(site()),))
    assert (report.totals.dense_us, report.totals.planned_us) == (None, None)
    assert report.totals.untimed_sites == 1
    assert report.totals.saved_bytes is None
    assert "predicted" not in str(report)
