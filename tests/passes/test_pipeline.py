"""The order of the passes, and what each of them may do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile.passes import pipeline
from nmcompile.passes.run import Pass, run
from tests.passes.linear import linear_plan


def test_logging_names_each_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="nmcompile"):
        nmcompile.explain(nn.Linear(16, 8), torch.randn(4, 16))
    for step in pipeline.JOINT:
        assert f"joint graph: {step.name}, " in caplog.text


def test_finding_and_deciding_change_nothing() -> None:
    gm, plan = linear_plan("full")
    before = str(gm.graph)
    run(pipeline.JOINT[:2], plan, "graph")
    assert str(gm.graph) == before
    assert plan.decisions[0].pruning is not None


@pytest.mark.parametrize("passes", [pipeline.JOINT, pipeline.POST_GRAD], ids=["joint", "post"])
def test_what_a_pass_needs_an_earlier_one_leaves(passes: tuple[Pass, ...]) -> None:
    held: list[Any] = []
    for step in passes:
        assert set(step.needs) <= set(held), step.name
        held += step.leaves
    assert len(set(held)) == len(held)
    assert len({step.name for step in passes}) == len(passes)
