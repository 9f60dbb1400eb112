"""The text of a report: a table on a wide screen, two lines a product on a narrow one."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from nmcompile import Policy, Report
from nmcompile.report.rows import EagerRow
from tests.report.samples import PRUNED, graph, site, skipped


def shown(report: Report, width: int) -> list[str]:
    """What a terminal of this width shows."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(report)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def report() -> Report:
    sites = site("layers.0.mlp.up_proj", **PRUNED, execution="simulate"), site("lm_head")
    return Report.of(Policy.recipe("full"), (graph(*sites),))


@pytest.mark.parametrize("width", [60, 80, 109])
def test_a_narrow_screen_loses_nothing(report: Report, width: int) -> None:
    assert shown(report, width)[:5] == [
        "graph 0 (inference)",
        "layers.0.mlp.up_proj  linear fprop  4 x 8 x 16  float32",
        "  activation 2:4 mse, simulate: policy.toml:12 (rule 2)",
        "lm_head  linear fprop  4 x 8 x 16  float32",
        "  dense: no rule matches",
    ]


def test_a_wide_screen_has_a_table(report: Report) -> None:
    text = "\n".join(shown(report, 150))
    assert "batch x M x N x K" in text
    assert "layers.0.mlp.up_proj" in text
    assert "policy.toml:12 (rule 2)" in text


def test_print_follows_the_terminal(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, str(report).splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "150")
    assert "batch x M x N x K" in str(report)


def test_names_are_no_markup() -> None:
    names = "[red]a[/red]", "[/", "[link=x]"
    report = Report.of(Policy.recipe("full"), (graph(*map(site, names)),))
    for width in (80, 150):
        text = "\n".join(shown(report, width))
        assert all(name in text for name in names)


def test_what_sparse_products_leave_out_is_said_of_sparse_products_alone() -> None:
    def said(execution: str) -> str:
        sites = site(**PRUNED, execution=execution), site()
        return str(Report.of(Policy.recipe("full"), (graph(*sites),)))

    assert "1 of 2 products pruned: 50.0% of 2.05e+03 FLOPs\n" in said("simulate")
    assert "sparse products leave out 25.0% of all" in said("sparse")


def test_lines_count_a_graph_as_often_as_it_runs() -> None:
    mv = replace(skipped(target="aten.mv"), flops=10.0)
    shared = graph(site(), skipped=(mv, skipped()), region=("a", "b", "c"))
    text = str(Report.of(Policy.recipe("full"), (shared,)))
    assert "graph 0 (inference), 3 times" in text
    assert "0 of 3 products pruned" in text
    assert "skipped 3 x aten.mv, 30 FLOPs: fused" in text
    assert "skipped 3 x aten.flash: fused" in text


def test_what_is_in_no_graph_comes_largest_first_and_not_all_of_it() -> None:
    rows = [
        EagerRow(module=f"m{i}", module_class="", target="aten.mm", calls=1, flops=i, reason=None)
        for i in range(30)
    ]
    text = str(Report.of(Policy.recipe("full"), (), eager=[*rows, unknown]))
    assert "100.0% of the step's multiplying and what has no known size is in no graph" in text
    assert text.index("m29 (function): 1 x aten.mm, 29 FLOPs") < text.index("m28 (function)")
    assert "m5 (" not in text
    assert "and 11 more" in text


unknown = EagerRow(module="", module_class="Net", target="my.op", calls=2, flops=None, reason=None)
