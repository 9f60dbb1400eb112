"""What the backward reads from the forward, from two small graphs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from nmcompile.ops.schemas import Compress, CompressLike
from nmcompile.report.saved import saved_for_backward


def backward_of(**values: Any) -> fx.Graph:
    graph = fx.Graph()
    for name, value in values.items():
        graph.placeholder(name).meta["val"] = value
    return graph


def forward_with_packed() -> fx.Graph:
    """Packs x, and keeps other places of y."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    args = (x, None, [0], [1], 2, 4, "mse", "row_major")
    every = graph.call_function(Compress.operator, args)
    packed = graph.create_node("call_function", operator.getitem, (every, 0), name="packed")
    kept = (y, packed, "row_major")
    graph.create_node("call_function", CompressLike.operator, kept, name="kept")
    return graph


def test_every_tensor_but_the_tangents_with_its_bytes() -> None:
    backward = backward_of(
        primals_1=torch.empty(4, 8),
        relu=torch.empty(4, 8, dtype=torch.bfloat16),
        mask=torch.empty(4, 8, dtype=torch.bool),
        s0=4,  # a size
        tangents_1=torch.empty(4, 8),
    )
    found = saved_for_backward([fx.Graph(), backward])
    rows = [(s.name, s.shape, s.dtype, s.bytes, s.is_input, s.compressed) for s in found]
    assert rows == [
        ("primals_1", ("4", "8"), "float32", 128, True, False),
        ("relu", ("4", "8"), "bfloat16", 64, False, False),
        ("mask", ("4", "8"), "bool", 32, False, False),
    ]


def test_packed_operands_are_told_apart() -> None:
    backward = backward_of(packed=torch.empty(4, 9), kept=torch.empty(4, 9), y=torch.empty(4))
    found = saved_for_backward([forward_with_packed(), backward])
    assert [(s.name, s.compressed) for s in found] == [
        ("packed", True),
        ("kept", True),
        ("y", False),
    ]


def test_symbolic_sizes_are_shown_and_counted_as_traced() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    value: Tensor = mode.from_tensor(torch.empty(5, 8), static_shapes=False)
    (saved,) = saved_for_backward([fx.Graph(), backward_of(gelu=value)])
    assert saved.shape == tuple(map(str, value.shape))
    assert not saved.shape[0].isdigit()
    assert saved.bytes == 4 * 5 * 8


def test_an_inference_graph_saves_nothing() -> None:
    assert saved_for_backward([backward_of(x=torch.empty(4))]) == ()
    assert saved_for_backward([]) == ()
