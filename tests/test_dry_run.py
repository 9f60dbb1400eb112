"""``nmcompile.explain``: what it leaves untouched, what it takes and what it raises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import Policy, PolicyError, Rule
from tests.report.net import Net


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


def test_explain_needs_no_memory_for_the_model() -> None:
    with torch.device("meta"):
        model, x = nn.Linear(8, 8), torch.randn(4, 8)
    report = nmcompile.explain(model, x)
    assert {s.device for s in report.sites} == {"meta"}
    assert report.totals.pruned_share == 1.0
