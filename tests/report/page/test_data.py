"""The document of the page: complete, small, and of what the report says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

pytest.importorskip("fast_sugiyama", reason="a page needs nmcompile[page]")

import nmcompile
from nmcompile import Policy, Report
from nmcompile.report.page.data import KINDS, data_of
from nmcompile.report.page.drawing import Kind


def test_the_document_has_every_site_with_its_module_and_reasons() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    report = nmcompile.explain(model, torch.randn(4, 8, requires_grad=True))
    data = json.loads(json.dumps(data_of(report)))
    (graph,) = data["graphs"]
    assert graph["modules"] == ["", "0", "1", "2"]
    assert len(graph["sites"]) == len(report.sites)
    for row, site in zip(graph["sites"], report.sites, strict=True):
        assert graph["modules"][row["module"]] == site.module
        assert (row["role"], row["rule"], row["execution"]) == (site.role, site.rule, "simulate")
        assert row["reasons"] == [[r.code, r.text] for r in site.reasons]
    assert data["totals"]["pruned_sites"] == 6
    assert Policy.loads(data["policy"]) == Policy.recipe("full")
    after = graph["drawings"][1][1]  # of the first layer, forward
    (inserted,) = [box for box in after[0] if KINDS[box[0]] is Kind.INSERTED]
    _, target, shape, _, is_inserted, sites = graph["after"][inserted[3]]
    assert (target, shape, is_inserted, sites) == ("nm.prune", "4 x 8 float32", 1, [])
    assert not [b for b in graph["drawings"][1][0][0] if KINDS[b[0]] is Kind.INSERTED]


def test_kernels_have_their_source() -> None:
    pytest.importorskip("triton")
    layer = nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16, device="meta")
    x = torch.empty(32768, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True)
    data = data_of(nmcompile.explain(layer, x, target="h100"))
    assert len(data["kernels"]) == 2
    assert all("@triton.jit" in source for _, source in data["kernels"])
    assert data["target"]["name"] == "h100"


def test_a_report_of_nothing_is_a_document_too() -> None:
    data = data_of(Report.of(Policy.recipe("full"), ()))
    assert (data["graphs"], data["kernels"], data["totals"]["sites"]) == ([], [], 0)
