"""Which weights are pruned in the forward, under the names of the model that is exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nmcompile import ExportError, Policy, Report
from nmcompile.checkpoints.pruned import pruned_sites, report_of_model
from nmcompile.gemm import OperandKind
from nmcompile.report.report import GraphReport
from nmcompile.report.rows import Site, WeightRow
from nmcompile.schedule import compiled
from tests.report.samples import graph, site


def weight(*names: str, module: str = "fc", obstacle: str = "", **changes: Any) -> Site:
    """A forward product whose weight is pruned."""
    row = WeightRow(
        names=names, dims=(1,), groups=1, tile_dims=(1, 0), tile_groups=1, obstacle=obstacle
    )
    how = {"pruned": OperandKind.WEIGHT, "format": "2:4", "method": "transposable"}
    return site(module, weight=row, **{**how, **changes})


def report(*graphs: GraphReport) -> Report:
    return Report.of(Policy.recipe("weights"), graphs)


def test_a_name_for_each_module_of_a_region() -> None:
    found = pruned_sites(report(graph(weight("0.w", "1.w"), site("dense"))))
    assert list(found) == ["0.w", "1.w"]


def test_evaluation_comes_first() -> None:
    in_training = graph(weight("w", dtype="bfloat16"), training=True)
    in_evaluation = graph(weight("w", dtype="float32"))
    for graphs in ((in_training, in_evaluation), (in_evaluation, in_training)):
        assert pruned_sites(report(*graphs))["w"].dtype == "float32"
    assert pruned_sites(report(in_training))["w"].dtype == "bfloat16"


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ([weight("w", obstacle="it is computed by aten.mul")], "of fc cannot .*: it is computed"),
        ([weight("w", module="", obstacle="it is cut")], "of the model cannot .*: it is cut"),
        ([weight("w", method="mvue")], r"its mask is random \(mvue\)"),
        (
            [weight("w"), weight("w", module="b", format="1:4")],
            "of b cannot .*: w is pruned in another way for fc",
        ),
        ([weight("w", method="mse"), weight("w", method="transposable")], "in another way"),
    ],
)
def test_a_mask_that_has_no_place(sites: list[Site], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        pruned_sites(report(graph(*sites)))


def test_what_evaluation_does_not_prune_is_refused() -> None:
    graphs = graph(weight("a"), weight("b"), training=True), graph(weight("a"))
    with pytest.raises(ExportError, match=r"^b: pruned in training and not in evaluation"):
        pruned_sites(report(*graphs))


def test_parts_of_a_model_have_its_names_and_shared_reports_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4))
    calls = {m: f"call of {path}" for path, m in model.named_modules() if path in ("0.0", "0.1")}
    for module, call in calls.items():
        module._compiled_call_impl = call
    one = graph(weight("0.weight", "1.weight", module="{0..1}"))
    made = report(one), ("0", "1")  # as compile(model[0], each="*") leaves it
    monkeypatch.setattr(compiled, "report_of_call", lambda call, module: made)
    found = report_of_model(model)
    assert len(found.graphs) == 1
    assert list(pruned_sites(found)) == ["0.0.weight", "0.1.weight"]
    assert found.sites[0].module == "0.{0..1}"
    assert all(name in model.state_dict() for name in pruned_sites(found))


def test_two_policies_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for module in model:
        module._compiled_call_impl = torch.sin
    policies = {model[0]: Policy.recipe("weights"), model[1]: Policy.recipe("dense")}
    monkeypatch.setattr(
        compiled,
        "report_of_call",
        lambda call, module: (Report.of(policies[module], (graph(weight("weight")),)), ()),
    )
    found = report_of_model(model)
    assert found.policy.count("schema = 1") == 2
    assert list(pruned_sites(found)) == ["0.weight", "1.weight"]
