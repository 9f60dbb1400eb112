"""Which layers no graph holds: by the products of graphs and by the parameters that they read."""

from __future__ import annotations

from torch import nn

from nmcompile.capture.regions import Region
from nmcompile.report.report import GraphReport
from nmcompile.report.uncompiled import parameters_in, uncompiled
from tests.report.samples import graph, site, skipped


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.attention = nn.MultiheadAttention(8, 2)
        self.rnn = nn.LSTM(4, 4)
        self.conv, self.norm = nn.Conv1d(4, 4, 1), nn.LayerNorm(4)


EVERY = ["layers.0", "layers.1", "layers.2", "attention", "attention.out_proj", "rnn", "conv"]


def without(*held: str) -> list[str]:
    return [path for path in EVERY if path not in held]


def left_out(*graphs: GraphReport, parameters: set[str] | None = None) -> list[str]:
    return uncompiled(Net(), graphs, parameters or ())


def test_every_module_with_a_matrix_is_looked_for_and_an_embedding_is_not() -> None:
    assert left_out() == EVERY


def test_what_a_graph_multiplies_or_lists_it_holds() -> None:
    assert left_out(graph(site("layers.1"), site("conv"))) == without("layers.1", "conv")
    assert left_out(graph(skipped=(skipped("rnn"),))) == without("rnn")


def test_a_row_of_a_region_stands_for_all_of_its_modules() -> None:
    region = ("layers.0", "layers.2")
    assert left_out(graph(site("layers.{0,2}"), region=region)) == without("layers.0", "layers.2")


def test_a_layer_whose_weight_is_an_input_is_held_whoever_multiplies_by_it() -> None:
    # Attention reads the weight of its output projection itself, and fused attention hides it.
    net = Net()
    inputs = [*net.attention.parameters(), *net.rnn.parameters(), net.layers[0].bias]
    read = parameters_in(net, inputs, Region())
    assert uncompiled(net, (), read) == without("attention", "attention.out_proj", "rnn")


def test_parameters_of_one_module_of_a_region_are_those_of_all() -> None:
    net = Net()
    read = parameters_in(net, [net.layers[0].weight], Region(("layers.0", "layers.2")))
    assert read == {"layers.0.weight", "layers.2.weight"}
