"""Models that Dynamo cuts into several graphs, and those that must stay in one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from tests.setups.steps import MSE, assert_close, compiled, eager_step, mlp, one_step, roles


class Broken(nn.Module):
    """Four graphs: cut by an explicit break, a print, and a number read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16).double() for _ in range(3))
        self.tail = mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        torch._dynamo.graph_break()
        x = torch.tanh(self.b(x))
        print("after b")
        x = torch.tanh(self.c(x))
        scale = 2.0 if x.mean().item() > 10 else 0.5
        return self.tail(x * scale)


@pytest.mark.slow
def test_every_graph_is_pruned_under_its_own_paths(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = Broken(), torch.randn(8, 16, dtype=torch.float64)
    expected = eager_step(model, x)
    assert_close(one_step(compiled(model, MSE), model, x), expected)
    assert capsys.readouterr().out == "after b\nafter b\n"
    report = nmcompile.last_report()
    assert [sorted({s.module for s in g.sites}) for g in report.graphs] == [
        ["a"],
        ["b"],
        ["c"],
        ["tail.0", "tail.2"],
    ]
    # The first graph alone has no dgrad: its input needs no gradient.
    every = [("dgrad", "gradient"), ("fprop", "activation"), ("wgrad", "gradient")]
    for path in ("a", "b", "c", "tail.0", "tail.2"):
        found = [(r, k) for module, r, k in roles(report.sites) if module == path]
        assert found == (every[1:] if path == "a" else every)


def test_fullgraph_takes_one_graph() -> None:
    model, x = mlp(), torch.randn(8, 16, dtype=torch.float64)
    found = one_step(compiled(model, MSE, fullgraph=True), model, x)
    assert_close(found, eager_step(model, x))
    assert len(nmcompile.last_report().graphs) == 1


def test_fullgraph_refuses_a_break_as_inductor_does() -> None:
    errors = []
    for policy in ("full", None):
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
            compiled(Broken(), policy, fullgraph=True)(torch.randn(8, 16, dtype=torch.float64))
        errors.append(caught.value)
    ours, inductors = (re.sub("0x[0-9a-f]+", "", str(e)) for e in errors)
    assert ours == inductors
    assert "graph_break" in ours
