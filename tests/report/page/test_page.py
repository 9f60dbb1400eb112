"""The page in a browser: folding, filtering, keys, links, no request, no markup from names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("fast_sugiyama", reason="a page needs nmcompile[page]")

import nmcompile
from benchmarks.browser import ABSENT, chromium
from nmcompile import NMError, Policy, Report
from nmcompile.reason import Code, Reason
from nmcompile.report.nodes import Node
from nmcompile.report.page.page import page as html_of
from tests.report.samples import graph, site, skipped

HOSTILE = "</script><img src=x onerror=alert(1)>", "<b>a</b>", "{{ 7 * 7 }}", "a\"b'c&amp;d"
needs_browser = pytest.mark.skipif(ABSENT, reason="no Chromium is installed")


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    report = Report.of(Policy.recipe("full"), (graph(*map(site, HOSTILE)),))
    text = html_of(report, HOSTILE[0])
    assert "<img" not in text
    assert text.count("</script>") == 2  # the data's and the page's own
    assert "default-src 'none'; script-src 'sha256-" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_the_same_report_is_the_same_page() -> None:
    report = Report.of(Policy.recipe("full"), (graph(site()),))
    assert html_of(report, "a") == html_of(report, "a")


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    report = Report.of(Policy.recipe("full"), ())
    with pytest.raises(NMError, match="cannot be written: No such file"):
        report.to_html(tmp_path / "gone" / "page.html")


def test_a_thousand_products_are_less_than_half_a_megabyte() -> None:
    one = nmcompile.explain(Net(), torch.randn(4, 8, requires_grad=True))
    (block,) = one.graphs

    def copied(nodes: tuple[Node, ...], i: int) -> Iterator[Node]:
        for n in nodes:
            inputs = tuple(f"{name}_{i}" for name in n.inputs)
            module = f"layers.{i}.{n.module}".rstrip(".")
            yield replace(n, name=f"{n.name}_{i}", module=module, inputs=inputs)

    count = 1020 // len(block.sites)
    large = block.model_copy(
        update={
            "sites": tuple(
                s.model_copy(update={"module": f"layers.{i}.{s.module}"})
                for i in range(count)
                for s in block.sites
            ),
            "nodes_before": tuple(n for i in range(count) for n in copied(block.nodes_before, i)),
            "nodes_after": tuple(n for i in range(count) for n in copied(block.nodes_after, i)),
        }
    )
    report = one.model_copy(update={"graphs": (large,)})
    assert len(report.sites) > 1000
    assert len(html_of(report, "a").encode()) < 500_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api")
    with chromium() as opened:
        yield opened


class Net(nn.Module):
    """A block with a residual connection, and a layer that no block fits into."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.small = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        out: torch.Tensor = self.small(x)
        return out


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = nmcompile.explain(Net(), torch.randn(4, 8, requires_grad=True))
    return report.to_html(tmp_path_factory.mktemp("page") / "page.html", "net")


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a file; at the end nothing was printed to the console and nothing asked for."""
    messages: list[str] = []
    requests: list[str] = []

    def at(file: Path, width: int = 1500, height: int = 1000) -> Any:
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=20_000)
        return tab

    yield at
    assert messages == []
    assert all(url.startswith(("file:", "blob:")) for url in requests)


def names(tab: Any) -> list[str]:
    cells = tab.eval_on_selector_all(
        "#tree tbody tr",
        "rows => rows.map(r => r.cells[0].lastChild.textContent)",
    )
    return list(cells)


@needs_browser
def test_the_tree_unfolds_and_folds_by_keyboard(opened: Any, file: Path) -> None:
    tab = opened(file)
    assert names(tab) == ["(model)", "blocks", "small"]
    tab.focus("#tree tbody tr")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    assert names(tab) == ["(model)", "blocks", "0", "1", "small"]
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    assert names(tab) == ["(model)", "blocks", "0", "0", "2", "1", "small"]
    assert tab.text_content("#name") == "blocks.0"
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert names(tab) == ["(model)", "blocks", "small"]


@needs_browser
def test_filter_and_sort(opened: Any, file: Path) -> None:
    tab = opened(file)
    tab.fill("#filter", "blocks.1.2")
    assert names(tab) == ["(model)", "blocks", "1", "2"]
    tab.fill("#filter", "too-short")
    assert names(tab) == ["(model)", "small"]
    tab.fill("#filter", "no such thing")
    assert names(tab) == []
    assert tab.text_content("#shown") == "nothing matches"
    tab.fill("#filter", "")
    tab.select_option("#sort", "flops")
    assert names(tab) == ["(model)", "blocks", "small"]
    tab.click("#unfold")
    assert len(names(tab)) == 9


@needs_browser
def test_a_selected_module_shows_its_products_and_its_graph(opened: Any, file: Path) -> None:
    tab = opened(file)
    tab.fill("#filter", "blocks.0.0")
    tab.click("#tree tbody tr:last-child")
    assert tab.text_content("#name") == "blocks.0.0"
    products = tab.text_content("#products")
    assert "linear fprop" in products
    assert "recipe full, rule 2" in products
    assert tab.locator("#graph .inserted").count() == 1
    tab.click("text=before")
    assert tab.locator("#graph .inserted").count() == 0
    tab.click("text=after")
    tab.click("#views >> text=backward")
    # a seed is made once for the graph; the masks of both roles are here
    assert tab.locator("#graph .inserted").count() == 2
    tab.click("#graph .inserted >> nth=0")
    assert "put there by nmcompile" in tab.text_content("#node")
    assert "nm.prune" in tab.text_content("#node")


@needs_browser
def test_a_click_on_a_folded_module_opens_it_and_the_graph_zooms(opened: Any, file: Path) -> None:
    tab = opened(file)
    tab.click("#graph .submodule[data-opens] >> nth=0")
    assert tab.text_content("#name") == "blocks"
    before = tab.get_attribute("#graph > g", "transform")
    tab.focus("#graph")
    tab.keyboard.press("+")
    zoomed = tab.get_attribute("#graph > g", "transform")
    assert zoomed != before
    tab.keyboard.press("0")
    assert tab.get_attribute("#graph > g", "transform") == before


@needs_browser
def test_panels_and_links(opened: Any, file: Path) -> None:
    tab = opened(file)
    tab.click("#dense summary")
    tab.click("#dense a")
    assert names(tab) == ["(model)", "small"]
    tab.click("#policy summary")
    assert "schema = 1" in tab.text_content("#policy pre")


@needs_browser
def test_a_link_leads_to_a_kernel(opened: Any, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    layer = nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16, device="meta")
    x = torch.empty(32768, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True)
    report = nmcompile.explain(layer, x, target="h100")
    tab = opened(report.to_html(tmp_path / "page.html"))
    tab.click("#kernels summary")
    tab.click("#kernels a >> nth=1")
    assert tab.url.endswith("#kernel-1")
    assert tab.is_visible("#kernel-1")
    assert "sparse" in tab.text_content("#summary")


@needs_browser
@pytest.mark.parametrize("width", [420, 1500])
def test_nothing_is_wider_than_the_screen(opened: Any, file: Path, width: int) -> None:
    tab = opened(file, width=width)
    tab.click("#unfold")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_blocks_that_are_planned_once_are_one_row(opened: Any, tmp_path: Path) -> None:
    x = torch.randn(4, 8, requires_grad=True)
    report = nmcompile.explain(Net(), x, each="blocks.*")
    tab = opened(report.to_html(tmp_path / "page.html"))
    assert names(tab) == ["(model)", "blocks", "{0..1}", "0", "2"]
    tab.click("#tree tbody tr:nth-child(4)")
    assert tab.text_content("#name") == "blocks.{0..1}.0"
    assert "2 times" in tab.text_content("#products")
    assert tab.locator("#graph .inserted").count() == 1
    assert "in no graph" in tab.text_content("#panels").lower()


@needs_browser
def test_hostile_names_are_text(opened: Any, tmp_path: Path) -> None:
    everything = graph(*map(site, HOSTILE), skipped=tuple(map(skipped, HOSTILE)))
    report = Report.of(Policy.recipe("full"), (everything,), uncompiled=HOSTILE)
    tab = opened(report.to_html(tmp_path / "page.html", HOSTILE[0]))
    tab.click("#unfold")
    shown = tab.text_content("#tree")
    assert all(name.rpartition(".")[2] in shown for name in HOSTILE)
    assert tab.text_content("h1") == HOSTILE[0]
    assert tab.locator("img, b").count() == 0


@needs_browser
def test_a_model_without_products_says_so(opened: Any, tmp_path: Path) -> None:
    report = Report.of(Policy.recipe("full"), ())
    tab = opened(report.to_html(tmp_path / "page.html"))
    assert tab.text_content("#summary") == "this model has no product"


@needs_browser
def test_a_narrow_screen_keeps_deep_names_on_a_line_and_long_notes_inside(
    opened: Any, tmp_path: Path
) -> None:
    deep = ".".join(["encoder", "stages", "0", "layers", "1", "layer", "2", "convolution"] * 2)
    note = Reason(Code.SOME_EAGER, f"`torch._dynamo.config.{'capture_' * 20}ops`; " * 20)
    report = Report.of(Policy.recipe("full"), (graph(site(deep)),), notes=[note])
    tab = opened(report.to_html(tmp_path / "page.html"), width=420, height=900)
    tab.click("#unfold")
    tab.click("#unfold")  # it was unfolded, as a chain
    heights = tab.eval_on_selector_all("#tree tbody tr", "rows => rows.map(r => r.offsetHeight)")
    assert len(heights) == 17
    assert max(heights) < 50
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("document.querySelector('header').offsetHeight") < 300
    tab.click("#notes summary")
    assert note.text.strip() in tab.text_content("#notes")  # all of it
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    last = tab.locator("#tree tbody tr").last.locator("td").first
    assert last.get_attribute("title") == deep


@needs_browser
def test_a_path_that_is_too_long_keeps_its_end(opened: Any, tmp_path: Path) -> None:
    far, near = "transformer.h.11.attention", "transformer.h.11.mlp.projection"
    one = ("4",), "float32", ""
    nodes = (
        Node("x", "aten.relu", far, False, *one, ()),
        Node("y", "aten.a_very_long_name_of_an_operator", near, False, *one, ("x",)),
    )
    report = Report.of(Policy.recipe("full"), (graph(site(near), nodes_after=nodes),))
    tab = opened(report.to_html(tmp_path / "page.html"))
    tab.click("#unfold")
    tab.click("#unfold")
    tab.locator("#tree tbody tr").last.click()
    texts = tab.eval_on_selector_all("#graph g text", "all => all.map(t => t.textContent)")
    assert "from \u2026.h.11.attention" in texts
    assert "aten.a_very_long_nam\u2026" in texts
