"""The checks of the zoo fail where something is wrong: a lost product, path, gradient or step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("typer", reason="the benchmarks need nmcompile[study]")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nmcompile
from benchmarks.zoo.check import RTOL, compare, falls, uncounted, unlisted, unlisted_layers
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.executed import Product, executed, grouped_flops
from benchmarks.zoo.interpreted import interpreted
from benchmarks.zoo.shares import listed
from nmcompile import Report


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 8, 3, groups=2), nn.BatchNorm1d(8)
        self.twice, self.frozen = nn.Linear(8, 8), nn.Linear(8, 6)
        self.frozen.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x)).transpose(1, 2)
        h = self.twice(self.twice(h)).unsqueeze(1)
        h = nn.functional.scaled_dot_product_attention(h, h, h)
        return self.frozen(h) @ torch.ones(6, 5)


X = torch.randn(2, 4, 10)
CONV, TWICE = 2 * 2 * 8 * 8 * 2 * 3, 2 * 16 * 8 * 8


def report_without(report: Report, **what: object) -> Report:
    """The report without the sites whose fields are all as in ``what``."""
    graph = report.graphs[0]
    fields = dict.fromkeys(what, getattr)
    keep = tuple(s for s in graph.sites if any(f(s, n) != what[n] for n, f in fields.items()))
    assert len(keep) < len(graph.sites)
    return report.model_copy(update={"graphs": (graph.model_copy(update={"sites": keep}),)})


def test_products_of_an_eager_step() -> None:
    model = Net()
    ran = executed(model, lambda: model(X).sum())
    forward = {p: n for p, n in ran.products.items() if not p.backward}
    assert forward == {
        Product("conv", False, CONV): 1,
        Product("twice", False, TWICE): 2,
        Product("frozen", False, 2 * 16 * 8 * 6): 1,
        Product("", False, 2 * 16 * 6 * 5): 1,
    }
    backward = {p.path: n for p, n in ran.products.items() if p.backward}
    assert backward == {"conv": 1, "twice": 4, "frozen": 1, "": 1}
    row = 10 - 3 + 1  # of attention: 8 rows of 8 features in each of two batches
    once = 2 * 2 * row * row * 8
    hidden = {(o.path, o.backward, o.is_attention, o.flops) for o in ran.opaque}
    assert hidden == {("", False, True, 2 * once), ("", True, True, 5 * once)}
    assert {path: layer.calls for path, layer in ran.layers.items()} == {
        "conv": 1, "twice": 2, "frozen": 1,
    }  # fmt: skip
    assert (ran.layers["conv"].needs_dgrad, ran.layers["frozen"].needs_wgrad) == (0, 0)
    assert ran.extents == {
        "conv": {"fprop": 2, "dgrad": 4, "wgrad": 16},
        "twice": {"fprop": 8, "dgrad": 8, "wgrad": 16},
        "frozen": {"fprop": 8, "dgrad": 6, "wgrad": 16},
    }


def test_a_product_that_no_gradient_comes_back_to_may_be_left_out() -> None:
    model = Net()

    def step() -> Tensor:
        y = model(X)
        model.twice(y.new_ones(3, 8)).square()  # which nobody asks for
        with torch.no_grad():
            model.twice(y.new_ones(5, 8))  # nobody will
        return y.sum()

    ran = executed(model, step)
    assert ran.unused == {Product("twice", False, 2 * 3 * 8 * 8): 1}
    assert not executed(model, lambda: model(X).sum()).unused


def test_grouped_products_of_an_eager_step() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 16, 8))

        def forward(self, x: Tensor) -> Tensor:
            offs = torch.tensor([5, 5, 10], dtype=torch.int32)
            return nn.functional.grouped_mm(x, self.weight.transpose(1, 2), offs=offs)

    model, x = Experts(), torch.randn(10, 8, requires_grad=True)
    ran = executed(model, lambda: model(x).square().sum())
    one = 2 * 10 * 8 * 16
    assert ran.products == {Product("", False, one): 1, Product("", True, one): 2}
    a, b = torch.empty(3, 4, 5), torch.empty(5, 7)
    assert grouped_flops(a, b) == 2 * 4 * 5 * 7
    assert grouped_flops(a, torch.empty(3, 5, 7)) == 3 * 2 * 4 * 5 * 7


@pytest.mark.parametrize(
    "lost",
    [{"module": "conv", "role": "wgrad"}, {"module": "twice", "role": "dgrad"}, {"module": ""}],
)
def test_a_product_that_is_not_listed_is_found(lost: dict[str, str]) -> None:
    model = Net()
    ran = executed(model, lambda: model(X).sum())
    report = nmcompile.explain(Net(), X)
    assert unlisted(ran, report) + unlisted_layers(ran.layers, listed(report)) == []
    without = report_without(report, **lost)
    found = unlisted(ran, without)
    assert found
    assert all(line.startswith(repr(lost["module"])) for line in found)
    if lost["module"]:
        assert unlisted_layers(ran.layers, listed(without))


def test_a_fused_operator_that_is_not_listed_is_found() -> None:
    model = Net()
    ran = executed(model, lambda: model(X).sum())
    report = nmcompile.explain(Net(), X)
    graph = report.graphs[0].model_copy(update={"skipped": ()})
    report = report_without(report.model_copy(update={"graphs": (graph,)}), module="")
    assert any("attention" in line for line in unlisted(ran, report))


def test_what_runs_eagerly_is_compared_with_what_explain_counts() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    model, x = Recurrent(), torch.randn(5, 8, requires_grad=True)
    ran = executed(model, lambda: model(x).sum())
    report = nmcompile.explain(Recurrent(), x)
    once = 2 * 5 * 2 * 8 * 32
    assert [(o.backward, o.flops) for o in ran.opaque] == [(False, once), (True, 2 * once)]
    entry = Entry("", "", lambda: (model, {}), eager_only=("lstm",))
    assert uncounted(ran, report, entry) == []
    lost = report.model_copy(update={"eager": ()})
    assert uncounted(ran, lost, entry)[0].endswith(f"{3 * once:g} FLOPs, and explain counts 0")
    assert uncounted(ran, report, Entry("", "", entry.make))


def test_gradients_are_compared_with_the_largest_of_their_tensor() -> None:
    expected = {"w": torch.tensor([1.0, 1e-3]), "unused": None, "zero": torch.tensor([1e-9])}
    worst, failures = compare(2.0, expected, 2.0, {**expected, "zero": torch.tensor([-1e-9])})
    assert (worst < RTOL, failures) == (True, [])
    off = {**expected, "w": torch.tensor([1.0, 1.3e-3])}
    assert compare(2.0, expected, 2.0, off)[1] == ["dense: the gradient of w deviates by 3.0e-04"]
    assert compare(2.0, expected, 2.0, {**expected, "w": None})[1]
    assert compare(2.0, expected, 2.0, {**expected, "w": torch.full((2,), torch.nan)})[1]
    assert compare(2.0, expected, 2.0001, expected)[1]


def test_a_loss_must_fall_and_be_finite() -> None:
    assert falls([1.0, 2.0, 0.8]) == []
    assert falls([1.0, 0.95]) == ["full: the loss does not fall: 1 to 0.95"]
    assert falls([1.0, float("nan"), 0.1])


def test_interpreted_graphs_have_their_masks() -> None:
    layer, x = nn.Linear(8, 6), torch.randn(4, 8)
    with interpreted():
        run = torch.compile(layer, backend="nm_sparse", options={"policy": "activations"})
        y = run(x)
    expected = nn.functional.linear(nmcompile.functional.prune(x), layer.weight, layer.bias)
    torch.testing.assert_close(y, expected)
    assert nmcompile.last_report().totals.pruned_sites == 1
