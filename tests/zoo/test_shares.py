"""The parts of a step sum up, and what could be pruned and is not is found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nmcompile
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.executed import executed
from benchmarks.zoo.shares import listed, not_pruned, shares, without_weight
from nmcompile import Report
from nmcompile.reason import Code, Reason

T, WIDTH = 16, 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.thin, self.wide = nn.Linear(3, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(self.thin(x)).view(1, 1, T, WIDTH)
        h = nn.functional.scaled_dot_product_attention(h, h, h)
        return h @ h.mT


class Eager(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.wide(self.thin(x)))[0]


ENTRY = Entry("", "", lambda: (Net(), {}))
X = torch.randn(T, 3)
THIN, WIDE, SQUARE = 2 * T * 3 * WIDTH, 2 * T * WIDTH * WIDTH, 2 * T * T * WIDTH


def changed(report: Report, module: str, **fields: Any) -> Report:
    """The report with other fields in the rows of a module."""
    graphs = []
    for graph in report.graphs:
        sites = [s.model_copy(update=fields) if s.module == module else s for s in graph.sites]
        graphs.append(graph.model_copy(update={"sites": tuple(sites)}))
    return report.model_copy(update={"graphs": tuple(graphs)})


def test_parts_of_a_step() -> None:
    model = Net()
    ran = executed(model, lambda: model(X).sum())
    report = nmcompile.explain(Net(), X)
    parts = shares(ran, listed(report), ENTRY)
    # Fprop of the thin layer reduces over 3 elements; its input needs no gradient.
    assert (parts.pruned, parts.short) == (3 * WIDE + THIN, THIN)
    assert (parts.matmul, parts.attention) == (3 * SQUARE, 7 * SQUARE)
    assert (parts.inside, parts.eager, parts.layers, parts.of_layers) == (0, 0, 0, 1)
    assert parts.everything == 3 * WIDE + 2 * THIN + 3 * SQUARE
    assert parts.of("attention") == 7 * SQUARE / (parts.everything + 7 * SQUARE)
    assert [*not_pruned(listed(report), ran)] == []


def test_what_runs_eagerly_is_a_part() -> None:
    model = Eager()
    ran = executed(model, lambda: model(X).sum())
    entry = Entry("", "", ENTRY.make, eager_only=("rnn",))
    report = nmcompile.explain(Eager(), X)
    parts = shares(ran, listed(report), entry)
    assert parts.eager == sum(n * p.flops for p, n in ran.products.items() if p.path == "rnn") > 0
    assert parts.of_layers == parts.pruned / (parts.everything - parts.short) < 1


def test_a_layer_that_is_dense_without_need_is_found() -> None:
    model = Net()
    ran = executed(model, lambda: model(X).sum())
    report = nmcompile.explain(Net(), X)
    found = [*not_pruned(listed(changed(report, "wide", pruned=None)), ran)]
    assert len(found) == 3
    assert "wide dgrad 1x16x8x8: dense, though blocks run along 8 elements" in "".join(found)
    # Also where its weight was taken for something else, and is no linear layer any more.
    lost = changed(report, "wide", pruned=None, op="matmul")
    assert len([*not_pruned(listed(lost), ran)]) == 3
    assert shares(ran, listed(lost), ENTRY).layers == 3 * WIDE
    assert shares(ran, listed(lost), ENTRY).of_layers == pytest.approx(THIN / (3 * WIDE + THIN))


def test_a_false_reason_and_a_guess_that_prunes_are_found() -> None:
    model = Net()
    ran = executed(model, lambda: model(X).sum())
    report = nmcompile.explain(Net(), X)
    other = Reason(Code.NO_RULE, "no rule matches")
    wrong = changed(report, "thin", pruned=None, reasons=(other,))
    found = [*not_pruned(listed(wrong), ran)]
    assert any("too short for a block, and the reason is: no rule" in f for f in found)
    guess = Reason(Code.IN_ENGINE, "perhaps a gradient")
    guessed = [*not_pruned(listed(changed(report, "wide", guess=guess)), ran)]
    assert guessed == [f for f in guessed if "pruned by a guess: perhaps a gradient" in f]
    assert len(guessed) == 3


class Bare(nn.Module):
    """A weight of its own in two products, and a product without one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.weight
        return (h @ h.mT) @ h @ self.weight.mT


def test_a_weight_that_is_not_seen_is_found() -> None:
    x = torch.randn(T, WIDTH)
    model = Bare()
    ran = executed(model, lambda: model(x).sum())
    report = nmcompile.explain(Bare(), x)
    assert [s.op for s in report.sites if s.role == "fprop"].count("linear") == 2
    assert not without_weight(listed(report), ran)
    (found,) = without_weight(listed(changed(report, "", op="matmul")), ran)
    listed_so, ran_so = 2 * WIDE + 2 * SQUARE, 2 * SQUARE
    assert f"{listed_so} FLOPs are listed without a weight, {ran_so} ran without one" in found


class Block(nn.Linear):
    """A region of one layer."""

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_graph_that_modules_share_is_one_row_for_each() -> None:
    blocks = Block(WIDTH, WIDTH), Block(WIDTH, WIDTH)
    report = nmcompile.explain(nn.Sequential(nn.Linear(3, WIDTH), *blocks), X)
    assert {s.module for s in report.sites} == {"0", "{1..2}"}
    rows = listed(report)
    of_blocks = sorted((r.path, str(r.site.role), r.count) for r in rows if r.path != "0")
    assert of_blocks == [(p, role, 1) for p in "12" for role in ("dgrad", "fprop", "wgrad")]
    assert sum(r.flops for r in rows) == report.totals.flops


def test_a_loop_counts_as_often_as_it_runs_and_a_branch_if_it_does() -> None:
    from benchmarks.zoo.nested import ENTRIES

    report = nmcompile.explain(nn.Linear(WIDTH, WIDTH), torch.randn(T, WIDTH))
    loop = report.graphs[0].model_copy(update={"times": None, "operator": "while_loop"})
    report = report.model_copy(update={"graphs": (loop,)})
    assert [r.count for r in listed(report)] == [1, 1]
    assert [r.count for r in listed(report, Entry("", "", ENTRY.make, iterations=7))] == [7, 7]
    assert listed(report, Entry("", "", ENTRY.make, untaken=("",))) == []
    assert {e.name: e.iterations for e in ENTRIES if e.iterations > 1} == {"while-loop": 3}
