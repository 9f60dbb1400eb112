"""The report: totals, JSON, text, and what explain leaves untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import NMError, Policy, PolicyError, Report, Rule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.dropout(self.norm(self.conv(x)), training=self.training)
        return self.head(h.mean((2, 3)))


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
    assert data["schema_version"] == 2
    assert sorted(data) == [
        *("graphs", "policy", "schema_version", "totals", "uncompiled", "unused_rules")
    ]
    assert sorted(data["graphs"][0]) == [
        "after", "before", "digest", "region", "saved", "sharing", "sites", "skipped", "training",
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
        "rule": "recipe full, rule 1",
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


def test_explain_changes_nothing() -> None:
    model, x = Net(), torch.randn(4, 4, 6, 6)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    nmcompile.explain(model, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_explain_is_not_swayed_by_earlier_calls() -> None:
    first = nmcompile.explain(nn.Linear(8, 8), torch.randn(4, 8))
    for tokens in range(5, 16):  # more than Dynamo's limit of recompilations
        again = nmcompile.explain(nn.Linear(8, 8), torch.randn(tokens, 8))
    assert [s.sizes[1] for s in (first.sites[0], again.sites[0])] == ["4", "15"]


def test_explain_takes_a_compiled_model_and_keyword_inputs() -> None:
    compiled = torch.compile(nn.Linear(8, 8), backend="nm_sparse")
    assert len(nmcompile.explain(compiled, input=torch.randn(4, 8)).sites) == 2


def test_explain_raises_policy_errors_as_they_are() -> None:
    rule = Rule(
        prune="activation", role="fprop", format="1:4", execution="sparse", fallback="error"
    )
    with pytest.raises(PolicyError, match="asks for execution"):
        nmcompile.explain(nn.Linear(8, 8), torch.randn(4, 8), policy=Policy(rules=[rule]))


def test_last_report_needs_a_compilation() -> None:
    with pytest.raises(NMError, match=r"call a model compiled with torch.compile\(model, backend="):
        nmcompile.last_report()


def test_last_report_is_of_the_newest_compile_call() -> None:
    a, b = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))
    for model, expected in ((a, 2), (b, 5)):
        torch.compile(model, backend="nm_sparse")(torch.randn(4, 8))
        assert len(nmcompile.last_report().sites) == expected


def test_last_report_equals_explain() -> None:
    model, x = Net(), torch.randn(4, 4, 6, 6)
    torch.compile(model, backend="nm_sparse", dynamic=False)(x)
    ran, planned = nmcompile.last_report(), nmcompile.explain(model, x)
    assert ran.sites == planned.sites
    assert ran.totals == planned.totals


def test_only_a_users_own_rules_are_listed_as_unused() -> None:
    text = 'schema = 1\nextends = "full"\n\n[[rule]]\ndense = true\n'
    policy = Policy.loads(text, origin="recipe of mine.toml")  # no recipe, whatever its name
    assert Report.of(policy, ()).unused_rules == ("recipe of mine.toml:4 (rule 1)",)
