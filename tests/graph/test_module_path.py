"""Module paths as named_modules() writes them, in both directions and through graph breaks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile.graph.module_path import normalise


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("L['self']", ""),
        ("L['self'].layers.0.fc", "layers.0.fc"),
        ("G['model'].fc", "fc"),
        ("L['self']._modules['fc']", "fc"),
        ("L['self']._modules['layers']._modules['0'].fc", "layers.0.fc"),
        ("L['self'].__dict__['_modules']['a'].__dict__['_modules']['b'].0.fc", "a.b.0.fc"),
        ("L['fn'].__closure__[0].cell_contents.fc", "fc"),
        ("L['fn'].0.__dict__['_modules']['_checkpoint_wrapped_module'].fc", "0.fc"),
        ("L['self']._orig_mod.layers.0._fsdp_wrapped_module", "layers.0"),
        ("getattr(getattr(G['model'].a, '0').b, '1')", "a.0.b.1"),
        ("", ""),
    ],
)
def test_normalise(source: str, path: str) -> None:
    assert normalise(source) == path


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.raw = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) @ self.raw


class Net(nn.Module):
    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"a": Block(), "b": Block()})
        self.head, self.broken = nn.Linear(8, 8), broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks["b"](self.blocks["a"](x))
        if self.broken:
            torch._dynamo.graph_break()
        return self.head(x)


PATHS = {"blocks.a.fc", "blocks.a", "blocks.b.fc", "blocks.b", "head"}


def test_paths_in_both_directions() -> None:
    report = nmcompile.explain(Net(), torch.randn(4, 8, requires_grad=True))
    for role in ("fprop", "dgrad", "wgrad"):
        assert {s.module for s in report.sites if str(s.role) == role} == PATHS
    assert {s.module for s in report.sites} <= {name for name, _ in Net().named_modules()}
    assert {s.module_class for s in report.sites if s.module == "head"} == {"Linear"}


def test_paths_in_a_function_that_calls_the_model() -> None:
    model = Net()
    report = nmcompile.explain(lambda x: model(x).sum(), torch.randn(4, 8))
    assert {s.module for s in report.sites} == PATHS


def test_paths_after_a_graph_break() -> None:
    compiled = torch.compile(Net(broken=True), backend="nm_sparse")
    compiled(torch.randn(4, 8)).sum().backward()
    report = nmcompile.last_report()
    assert len(report.graphs) == 2
    assert {s.module for s in report.sites} == PATHS
