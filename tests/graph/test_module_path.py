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
        ("L['args'][0].layers[3].fc", "layers.3.fc"),
        ("L['self'].d._modules['a[0]'].fc", "d.a[0].fc"),
        ("L['self'].d._modules[\"layer'q\"].0", "d.layer'q.0"),
        ("L['self'].d._modules['a]b']", "d.a]b"),
        ("L['self'].d._modules['a\\'\"b']", "d.a'\"b"),
        ("L['self'].d.a\\\\b.tab\\t", "d.a\\b.tab\t"),
        ("L['self'].__dict__['_modules']['a\\\\b'].0", "a\\b.0"),
        ("getattr(L['self'], \"getattr(L['x'], 'y')\").0", "getattr(L['x'], 'y').0"),
        ("getattr(L['self'].(x, y), 'z')", "(x, y).z"),
        ("L['self'].d._orig_mod", "d._orig_mod"),
        ("L['self'].d.\\x1b[31mred.0", "d.\x1b[31mred.0"),
        ("something[else", "something[else"),
        ("getattr(L['self'], x)", "getattr(L['self'], x)"),
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


NAMES = [
    "\x1b[31mred",
    "a[0]",
    "layer'q",
    'x"y',
    "a\\b",
    "a]b",
    "_orig_mod",
    "tab\t",
    "(x)",
    "a'] ['b",
    "[red]",
    "é",
]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d = nn.ModuleDict({name: nn.Linear(8, 8) for name in NAMES})
        for name in NAMES:
            self.add_module(f"{name}2", nn.Sequential(nn.Linear(8, 8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in NAMES:
            x = getattr(self, f"{name}2")(self.d[name](x))
        return x


def test_any_name_is_that_of_named_modules() -> None:
    model = Named()
    report = nmcompile.explain(model, torch.randn(4, 8))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert {site.module for site in report.sites} == set(linear)
    printed = str(report)
    shown = ("d.[red]", "[red]2.0", "d.a[0]", r"d.\x1b[31mred", r"d.tab\t")
    assert all(name in printed for name in shown)
    assert "\x1b" not in printed


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
