"""The operations of a graph as data, before and after the passes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import nmcompile
from nmcompile.report.nodes import Node, _source


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).relu()


def listed(after: bool = True) -> dict[str, Node]:
    (graph,) = nmcompile.explain(Net(), torch.randn(4, 8, requires_grad=True)).graphs
    nodes = graph.nodes_after if after else graph.nodes_before
    return {n.name: n for n in nodes}


def test_inputs_are_called_as_in_the_model() -> None:
    labels = {n.label: n for n in listed().values() if n.target == "input"}
    assert labels.keys() == {"fc.weight", "fc.bias", "args[0]", "gradient of an output"}
    assert labels["fc.weight"].module == "fc"
    assert labels["fc.weight"].shape == ("16", "8")
    assert labels["gradient of an output"].backward


def test_what_the_passes_inserted_is_marked_and_products_have_their_sites() -> None:
    nodes = listed()
    inserted = [n for n in nodes.values() if n.inserted]
    assert [n.target for n in inserted].count("nm.prune") == 3
    assert not any(n.inserted for n in listed(after=False).values())
    for version in (True, False):
        sites = [site for n in listed(version).values() for site in n.sites]
        assert sorted(sites) == [0, 1, 2]
    (fprop,) = [n for n in nodes.values() if n.sites == (0,)]
    assert (fprop.target, fprop.module, fprop.backward) == ("aten.addmm", "fc", False)
    assert {nodes[i].target for i in fprop.inputs} >= {"nm.prune", "input"}


def test_the_backward_is_the_backward() -> None:
    nodes = listed()
    assert all(n.backward for n in nodes.values() if n.target == "aten.threshold_backward")
    masks = [n.backward for n in nodes.values() if n.target == "nm.prune"]
    assert sorted(masks) == [False, True, True]
    (seed,) = [n for n in nodes.values() if n.inserted and n.target == "aten.randint"]
    assert seed.backward


def test_the_source_is_the_users_line() -> None:
    (fprop,) = [n for n in listed().values() if n.sites == (0,)]
    path, line = fprop.source.rsplit(":", 1)
    assert path == __file__
    with open(path) as file:
        assert "self.fc(x)" in file.read().splitlines()[int(line) - 1]


def test_the_source_is_the_innermost_line_outside_of_the_package() -> None:
    ours = str(Path(nmcompile.__file__).parent / "functional.py")
    places = [("/a/train.py", 3), ("/a/model.py", 12), (ours, 7)]
    trace = "".join(f'  File "{path}", line {n}, in f\n    code()\n' for path, n in places)
    assert _source(trace) == "/a/model.py:12"
    assert _source(trace + '  File "cut off') == "/a/model.py:12"
    assert _source(f'  File "{ours}", line 7, in f\n') == _source("") == ""
