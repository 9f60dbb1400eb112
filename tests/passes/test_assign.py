"""The decision of each product: which rule, which operand, and why it stays dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import Policy, PolicyError, Rule
from nmcompile.errors import NMWarning
from nmcompile.reason import Code


def reasons(policy: Any, model: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> Any:
    model = (model or nn.Linear(16, 8)).to(dtype)
    report = nmcompile.explain(model, torch.randn(8, 16).to(dtype), policy=policy)
    return {str(s.role): s.reason for s in report.sites}


def test_no_rule_matches() -> None:
    assert reasons({"rule": [{"module": "other.*", "dense": True}]}) == {
        "fprop": "no rule matches",
        "wgrad": "no rule matches",
    }


def test_a_kind_that_the_product_lacks() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.T

    rule = {"prune": "weight", "op": "matmul", "role": "fprop", "format": "2:4"}
    assert reasons({"rule": [rule]}, Square()) == {
        "fprop": "no weight operand: this product has activation and activation"
    }


def test_a_format_that_keeps_everything() -> None:
    rule = {"prune": "activation", "role": "fprop", "format": "4:4"}
    assert reasons({"rule": [rule]})["fprop"] == "4:4 keeps every element"


def test_execution_simulate_needs_no_note_and_auto_has_one() -> None:
    rule = {"prune": "activation", "role": "fprop", "format": "2:4"}
    assert reasons({"rule": [{**rule, "execution": "simulate"}]})["fprop"] == ""
    note = "auto: no sparse tensor core product on cpu"
    assert reasons({"rule": [{**rule, "execution": "auto"}]})["fprop"] == note


def test_execution_sparse_never_becomes_something_else_in_silence() -> None:
    rule = {"prune": "activation", "role": "fprop", "format": "1:4", "execution": "sparse"}
    with pytest.warns(NMWarning, match="nothing is pruned: none of 1 products"):
        report = nmcompile.explain(nn.Linear(16, 8), torch.randn(8, 16), policy={"rule": [rule]})
    fprop = report.sites[0]
    assert (fprop.execution, fprop.pruned) == ("dense", None)
    assert fprop.reason.startswith(
        "execution = sparse, fallback = dense; sparse tensor cores take 2:4"
    )
    simulated = nmcompile.explain(
        nn.Linear(16, 8), torch.randn(8, 16), policy={"rule": [{**rule, "fallback": "simulate"}]}
    ).sites[0]
    assert (simulated.execution, str(simulated.pruned)) == ("simulate", "activation")
    assert simulated.reason.startswith("execution = sparse, fallback = simulate; sparse tensor")
    assert [r.code for r in simulated.reasons] == [Code.FALLBACK, Code.SPARSE_FORMAT]
    assert fprop.has(Code.DECLINED)
    with pytest.raises(PolicyError, match=r"<python>, rule 1: addmm.*fallback = \"simulate\""):
        nmcompile.explain(
            nn.Linear(16, 8), torch.randn(8, 16), policy={"rule": [{**rule, "fallback": "error"}]}
        )


def test_rules_by_dtype_and_size() -> None:
    rules = [
        Rule(dense=True, dtype="bfloat16"),
        Rule(prune="activation", role="fprop", format="2:4", min_flops=1e6),
    ]
    policy = Policy(rules=rules)
    assert reasons(policy, dtype=torch.bfloat16)["fprop"] == "the rule says dense"
    assert reasons(policy)["fprop"] == "no rule matches"  # 2*8*8*16 FLOPs only
    assert reasons(policy, nn.Linear(16, 8192))["fprop"].startswith("auto")


def test_by_module_path_and_class() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16)))
    policy = Policy(
        rules=[
            Rule(module="1.*", class_="Linear", prune="activation", role="fprop", format="1:4"),
            Rule(module="nowhere", dense=True),
        ]
    )
    report = nmcompile.explain(model, torch.randn(4, 16), policy=policy)
    assert [(s.module, s.format) for s in report.sites if str(s.role) == "fprop"] == [
        ("0", None),
        ("1.0", "1:4"),
    ]
    assert report.unused_rules == ("<python>, rule 2",)
    assert "rule <python>, rule 2 decided nothing" in str(report)
