"""What a notebook shows of a report: a small table, and nothing that a name could break out of."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from nmcompile import Policy, Report
from nmcompile.gemm import Role
from nmcompile.reason import Code, Reason
from tests.report.samples import PRUNED, graph, site

HOSTILE = ["</table><script>alert(1)</script>", "a\" onmouseover='x'", "<img src=x>", "{0}{x!r}%s"]


class Cells(HTMLParser):
    """Rows of cells, (text, title); every tag and attribute that occurs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str]]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(("", dict(attrs).get("title") or ""))

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            text, title = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, title)


def report(*sites: object) -> Report:
    return Report.of(Policy.recipe("full"), (graph(*sites),))  # type: ignore[arg-type]


def test_a_module_is_a_row_and_a_role_a_column() -> None:
    shown = report(
        site("up", **PRUNED, execution="simulate"),
        site("up", role=Role.WGRAD),
        site("up", role=Role.WGRAD),
        site("down"),
    )._repr_html_()
    head, up, down, *_ = Cells(shown).rows
    assert [text for text, _ in head] == ["module", "fprop", "dgrad", "wgrad", "of all FLOPs"]
    assert [text for text, _ in up] == [
        "up", "\u25d0 activation 2:4 mse, simulate", "", "2 x \u25cb dense", "75.0%"
    ]  # fmt: skip
    assert up[1][1] == "policy.toml:12 (rule 2)"
    assert up[3][1] == "no rule matches"
    assert down[4][0].startswith("25.0%")
    assert "1 of 4 products pruned" in shown


def test_a_graph_shows_its_own_table() -> None:
    (one,) = report(site("up", **PRUNED, execution="simulate")).graphs
    assert Cells(one._repr_html_()).rows[1][0] == ("up", "")


def test_no_name_becomes_markup() -> None:
    why = Reason(Code.NO_RULE, HOSTILE[0])
    cells = Cells(report(*(site(name, reasons=(why,)) for name in HOSTILE))._repr_html_())
    assert [row[0][0] for row in cells.rows[1:]] == HOSTILE
    assert {row[1][1] for row in cells.rows[1:]} == {HOSTILE[0]}
    assert cells.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert cells.attributes == {"style", "scope", "title"}


def test_it_has_no_colour_of_its_own() -> None:
    styles = set(re.findall(r'style="([^"]*)"', report(site())._repr_html_()))
    assert styles == {"text-align:left", "text-align:left;vertical-align:top"}


def test_a_large_model_is_cut_and_says_so() -> None:
    sites = [site(f"layers.{i}", flops=float(i)) for i in range(100)]
    shown = report(*sites)._repr_html_()
    names = [row[0][0] for row in Cells(shown).rows[1:]]
    assert names == [f"layers.{i}" for i in range(70, 100)]  # the largest, in the model's order
    assert "and 70 smaller modules: print(report), or report.to_html(path)" in shown
    assert len(shown) < 12_000


@pytest.mark.parametrize("graphs", [(), (graph(),)])
def test_a_report_of_nothing_is_its_sums(graphs: tuple[object, ...]) -> None:
    shown = Report.of(Policy.recipe("full"), graphs)._repr_html_()  # type: ignore[arg-type]
    assert "<table" not in shown
    assert "0 of 0 products pruned" in shown
