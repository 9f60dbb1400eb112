"""A graph as text: shapes and our marks are in it."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.graph.dump import readable
from nmcompile.graph.insert import SiteMark


def test_a_reader_sees_shapes_and_what_was_done() -> None:
    graph = make_fx(lambda x, w: x @ w, tracing_mode="fake")(
        torch.randn(4, 6), torch.randn(6, 8)
    ).graph
    (product,) = graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    before = str(graph)
    assert "nm:" not in readable(graph)
    product.meta["nm"] = SiteMark("fprop sparse product @ layers.0")
    text = readable(graph)
    assert 'mm: "f32[4, 8]' in text
    assert "nm: fprop sparse product @ layers.0" in text
    assert str(graph) == before
