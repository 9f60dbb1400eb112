"""Drawings: what runs in a module, folded submodules, edges that leave it by name, places."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

pytest.importorskip("fast_sugiyama", reason="a page needs nmcompile[page]")

from nmcompile.errors import NMError
from nmcompile.report.nodes import Node
from nmcompile.report.page.drawing import Drawing, Drawings, Kind


def node(name: str, module: str, *inputs: str, **changes: Any) -> Node:
    """An operation with a matrix as its result."""
    keys = {"target": f"aten.{name}", "backward": False, "shape": ("4", "8"), "source": ""}
    return Node(name=name, module=module, inputs=inputs, dtype="float32", **{**keys, **changes})


def weight(label: str) -> Node:
    return node(label, label.rpartition(".")[0], target="input", label=label)


NODES = [
    node("x", "", target="input", label="x"),
    weight("a.fc.weight"),
    node("pruned", "a.fc", "x", target="nm.prune", inserted=True),
    node("mm", "a.fc", "pruned", "a.fc.weight", sites=(0,)),
    node("gelu", "a", "mm"),
    node("add", "", "gelu", "x"),
    node("loss", "b", "add"),
    node("dy", "b", "loss", backward=True),
    node("dgelu", "a", "dy", "mm", backward=True),
    node("output", "", "loss", "dgelu", target="output", shape=None),
]


def boxes(drawing: Drawing) -> dict[str, Kind]:
    return {b.title: b.kind for b in drawing.boxes}


def edges(drawing: Drawing) -> set[tuple[str, str]]:
    return {(drawing.boxes[a].title, drawing.boxes[b].title) for a, b in drawing.edges}


def test_every_module_is_listed_with_those_that_it_is_in() -> None:
    assert Drawings(NODES).modules == ["", "a", "a.fc", "b"]


def test_the_model_shows_its_submodules_folded_and_hides_their_parameters() -> None:
    drawing = Drawings(NODES).draw("", backward=False)
    assert boxes(drawing) == {
        "a": Kind.SUBMODULE,
        "b": Kind.SUBMODULE,
        "aten.add": Kind.OPERATION,
        "x": Kind.INPUT,
        "to the backward": Kind.OUTSIDE,
    }
    assert edges(drawing) == {
        ("x", "a"), ("a", "aten.add"), ("x", "aten.add"), ("aten.add", "b"),
        ("a", "to the backward"), ("b", "to the backward"),
    }  # fmt: skip


def test_a_layer_shows_its_operations_and_names_what_leaves_it() -> None:
    drawing = Drawings(NODES).draw("a.fc", backward=False)
    assert boxes(drawing) == {
        "nm.prune": Kind.INSERTED,
        "aten.mm": Kind.PRODUCT,
        "x": Kind.INPUT,
        "weight": Kind.INPUT,
        "to a": Kind.OUTSIDE,
        "to the backward": Kind.OUTSIDE,
    }
    assert ("nm.prune", "aten.mm") in edges(drawing)
    assert ("aten.mm", "to a") in edges(drawing)
    assert next(b.detail for b in drawing.boxes if b.title == "aten.mm") == "4 x 8 fp32"


def test_the_backward_names_what_it_reads_of_the_forward() -> None:
    drawing = Drawings(NODES).draw("a", backward=True)
    details = {(b.title, b.detail) for b in drawing.boxes}
    assert ("from the forward", "aten.mm of a.fc") in details
    assert ("from b", "aten.dy") in details


def test_places_are_layers_from_the_top() -> None:
    for module in Drawings(NODES).modules:
        drawing = Drawings(NODES).draw(module, backward=False)
        for a, b in drawing.edges:
            assert drawing.boxes[a].y < drawing.boxes[b].y
        places = [(b.x, b.y) for b in drawing.boxes]
        assert len(set(places)) == len(places)
        assert min(b.y for b in drawing.boxes) == 0


def test_a_module_that_is_entered_twice_is_one_box_though_that_is_a_cycle() -> None:
    nodes = [
        node("first", "a.x"),
        node("between", "a", "first"),
        node("second", "a.x", "between"),
        node("alone", "a.y"),
    ]
    drawing = Drawings(nodes).draw("a", backward=False)
    assert edges(drawing) == {("x", "aten.between"), ("aten.between", "x")}
    assert boxes(drawing)["y"] is Kind.SUBMODULE


def test_modules_that_share_a_graph_are_one() -> None:
    nodes = [node("mm", "layers.{0..79}.fc"), node("add", "layers.{0..79}", "mm")]
    assert Drawings(nodes).modules == ["", "layers", "layers.{0..79}", "layers.{0..79}.fc"]
    drawing = Drawings(nodes).draw("layers.{0..79}", backward=False)
    assert boxes(drawing) == {"fc": Kind.SUBMODULE, "aten.add": Kind.OPERATION}


def test_a_value_read_twice_is_one_edge() -> None:
    nodes = [node("a", "m"), node("b", "m", "a", "a")]
    assert Drawings(nodes).draw("m", backward=False).edges == [(0, 1)]


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "fast_sugiyama":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(NMError, match=r"pip install 'nmcompile\[page\]'"):
        Drawings(NODES).draw("", backward=False)
