"""The export for Model Explorer: valid in its format, complete, and of what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import NMError, Policy, Report
from nmcompile.gemm import OperandKind
from nmcompile.report.model_explorer import collection
from nmcompile.report.nodes import Node
from tests.report.samples import graph, site


def strict(required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


def list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


TEXT = {"type": "string"}
PAIRS = list_of(strict({"key": TEXT, "value": TEXT}, {}))
METADATA = list_of(strict({"id": TEXT}, {"attrs": PAIRS}))
EDGE = strict({"sourceNodeId": TEXT}, {"sourceNodeOutputId": TEXT, "targetNodeInputId": TEXT})
COLOUR = {"type": "string", "pattern": "^#[0-9a-f]{6}$"}
STYLE = strict({}, {"backgroundColor": COLOUR, "borderColor": COLOUR, "hoveredBorderColor": COLOUR})
NODE = strict(
    {"id": TEXT, "label": TEXT, "namespace": TEXT},
    {
        "subgraphIds": list_of(TEXT),
        "attrs": PAIRS,
        "incomingEdges": list_of(EDGE),
        "outputsMetadata": METADATA,
        "inputsMetadata": METADATA,
        "style": STYLE,
    },
)
GROUPS = {
    "type": "object",
    "additionalProperties": {"type": "object", "additionalProperties": TEXT},
}
GRAPH = strict({"id": TEXT, "nodes": list_of(NODE)}, {"groupNodeAttributes": GROUPS})
ORDERS = ["node_count_asc", "node_count_desc", "name_asc", "name_desc"]
#: ``GraphCollection`` of graph_builder.py (ai-edge-model-explorer 0.1.34), as far as we write it.
SCHEMA = strict({"label": TEXT, "graphs": list_of(GRAPH)}, {"graphSorting": {"enum": ORDERS}})


def node(name: str, module: str, *inputs: str, **changes: Any) -> Node:
    keys = {"target": f"aten.{name}", "backward": False, "shape": ("4", "8"), "source": "n.py:3"}
    return Node(name=name, module=module, inputs=inputs, dtype="float32", **{**keys, **changes})


NODES = (
    node("x", "", target="input", label="x"),
    node("pruned", "a.fc", "x", target="nm.prune", inserted=True),
    node("mm", "a.fc", "pruned", "x", sites=(0,)),
    node("dy", "a.fc", "mm", backward=True),
    node("output", "", "mm", "dy", target="output", shape=None),
)
PRUNED = site(
    "a.fc",
    pruned=OperandKind.ACTIVATION,
    format="2:4",
    method="mse",
    rule="policy.toml:12 (rule 2)",
    execution="sparse",
    dense_us=10.0,
    sparse_us=6.25,
)


def checked(report: Report) -> dict[str, Any]:
    """The document, valid in the format, with edges from nodes that are there."""
    document = json.loads(json.dumps(collection(report, "title")))
    jsonschema.validate(document, SCHEMA)
    for found in document["graphs"]:
        names = [n["id"] for n in found["nodes"]]
        assert len(set(names)) == len(names)
        for n in found["nodes"]:
            assert {e["sourceNodeId"] for e in n["incomingEdges"]} <= set(names)
    assert len({found["id"] for found in document["graphs"]}) == len(document["graphs"])
    return dict(document)


def made(*nodes: Node, training: bool = True) -> dict[str, dict[str, Any]]:
    """The nodes of the only graph by their names."""
    one = graph(PRUNED, training=training, nodes_after=nodes)
    (found,) = checked(Report.of(Policy.recipe("full"), (one,)))["graphs"]
    return {n["id"]: n for n in found["nodes"]}


def attributes(document: dict[str, Any]) -> dict[str, str]:
    return {a["key"]: a["value"] for a in document["attrs"]}


def test_layers_are_modules_and_directions_are_apart() -> None:
    found = {name: n["namespace"] for name, n in made(*NODES).items()}
    assert found == {
        "x": "forward",
        "pruned": "forward/a/fc",
        "mm": "forward/a/fc",
        "dy": "backward/a/fc",
        "output": "",
    }
    alone = made(*NODES[:3], training=False)
    assert {n["namespace"] for n in alone.values()} == {"", "a/fc"}


def test_a_product_says_what_was_decided() -> None:
    product = made(*NODES)["mm"]
    assert product["label"] == "aten.mm"
    assert attributes(product) == {
        "operator": "aten.mm",
        "module": "a.fc",
        "source": "n.py:3",
        "fprop": "activation 2:4 mse",
        "fprop runs": "sparse",
        "fprop batch x M x N x K": "1 x 4 x 8 x 16",
        "fprop rule": "policy.toml:12 (rule 2)",
        "fprop reason": "no rule matches",
        "fprop dense": "10.0 us",
        "fprop sparse": "6.2 us",
    }
    assert product["outputsMetadata"][0]["attrs"] == [
        {"key": "tensor_shape", "value": "float32[4,8]"}
    ]
    assert [(e["sourceNodeId"], e["targetNodeInputId"]) for e in product["incomingEdges"]] == [
        ("pruned", "0"),
        ("x", "1"),
    ]


def test_what_was_inserted_is_marked() -> None:
    found = made(*NODES)
    assert attributes(found["pruned"])["inserted by"] == "nmcompile"
    styles = {name: n.get("style", {}).get("backgroundColor") for name, n in found.items()}
    assert styles["x"] is styles["dy"] is styles["output"] is None
    assert len({styles["pruned"], styles["mm"]}) == 2


def test_a_layer_counts_its_products() -> None:
    one = graph(PRUNED, site("b"), training=True, nodes_after=NODES)
    (found,) = checked(Report.of(Policy.recipe("full"), (one,)))["graphs"]
    counts = {name: said["products"] for name, said in found["groupNodeAttributes"].items()}
    assert counts[""] == "1 of 2 pruned, all roles"
    assert counts["forward/a"] == counts["backward/a/fc"] == "1 of 1 pruned, all roles"


HOSTILE = ["a/b", "</script><img src=x>", '"};alert(1)', "__proto__", "{0..79}", "\u202e\0"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_layer_whatever_it_holds(name: str) -> None:
    found = made(node("mm", f"layers.{name}", sites=(0,), label=name))["mm"]
    assert found["namespace"].count("/") == 2
    assert found["label"] == name


def test_a_report_without_a_graph_is_one_sentence(tmp_path: Path) -> None:
    for graphs in ((), (graph(),)):
        report = Report.of(Policy.recipe("full"), graphs)
        with pytest.raises(NMError, match="there is no graph to export: nothing of the model was"):
            report.to_model_explorer(tmp_path / "graphs.json")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_without_a_product_is_one_all_the_same() -> None:
    report = nmcompile.explain(nn.ReLU(), torch.randn(4, requires_grad=True))
    assert checked(report)["graphs"][0]["nodes"]


def test_a_real_model_is_exported_before_and_after(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(128, 4))
    report = nmcompile.explain(model, torch.randn(4, 4, 4, 4, requires_grad=True))
    document = checked(report)
    written = report.to_model_explorer(tmp_path / "a.json", "title")
    assert json.loads(written.read_text()) == document
    after, before = document["graphs"]
    assert (after["id"], before["id"]) == ("graph 0, after", "graph 0, before")
    new = {n["id"] for n in after["nodes"]} - {n["id"] for n in before["nodes"]}
    marked = {n["id"] for n in after["nodes"] if "inserted by" in attributes(n)}
    assert new == marked
    assert marked
    (both,) = (n for n in before["nodes"] if n["label"] == "aten.convolution_backward")
    assert {"dgrad", "wgrad"} <= attributes(both).keys()
