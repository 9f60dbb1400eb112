"""Which products Inductor calls the library for itself, and what it is told of their strides.

There is no GPU here: the graphs hold fake CUDA tensors.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from nmcompile import _cuda
from nmcompile.compressed import algorithms, plans
from nmcompile.compressed.layouts import Layout
from nmcompile.graph.insert import Inserter
from nmcompile.ops.schemas import LibraryMm, Mm
from nmcompile.passes.lower_products import lower_products
from nmcompile.passes.plan import Kernels

LAYOUT = Layout.CUSPARSELT_SM90


def product(
    dense: torch.Tensor,
    rows: int = 128,
    bias: torch.Tensor | None = None,
    layout: Layout = LAYOUT,
    **given: Any,
) -> fx.Graph:
    """``nm.mm`` of a packed operand of ``rows`` rows and ``dense``; called in a fake mode."""
    graph = fx.Graph()

    def node(name: str, value: torch.Tensor) -> fx.Node:
        placeholder = graph.placeholder(name)
        placeholder.meta["val"] = value
        return placeholder

    packed = dense.new_empty(layout.packed_shape(rows, dense.shape[0], dense.dtype))
    a, b = node("packed", packed), node("dense", dense)
    c = None if bias is None else node("bias", bias)
    call = Mm(a, b, rows, str(layout), bias=c, **given)
    graph.output(Inserter(graph).op(b, call, mark="a mark"))
    return graph


def lowered(graph: fx.Graph, lower: bool = True) -> fx.Node | None:
    """The call of the library that the pass makes of the graph's product, if it does."""
    lower_products(Kernels(graph, lower=lower))
    graph.lint()
    found = [*LibraryMm.nodes(graph), *Mm.nodes(graph)]
    assert len(found) == 1
    return found[0] if found[0].target is LibraryMm.operator else None


def half(*shape: int, **options: Any) -> torch.Tensor:
    return torch.empty(*shape, **{"dtype": torch.bfloat16, "device": "cuda", **options})


def gap(rows: int, columns: int, stride: int, offset: int = 0) -> torch.Tensor:
    """Rows that begin ``stride`` elements apart, the first one at ``offset``."""
    return half(offset + rows * stride).as_strided((rows, columns), (stride, 1), offset)


@pytest.mark.parametrize("transpose_result", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_static_and_whole_is_the_librarys_call(
    transpose_result: bool, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Any] = []
    monkeypatch.setattr(algorithms, "fastest", lambda *about: searched.append(about) or 7)
    with FakeTensorMode():
        dense = half(72, 64).t() if transposed else half(64, 72)
        graph = product(dense, 128, half(128), transpose_result=transpose_result)
        before = next(iter(Mm.nodes(graph))).meta["val"]
        call = lowered(graph)
    assert call is not None
    packed, dense_node, bias = list(graph.nodes)[:3]
    assert call.args == (packed, dense_node, bias, transpose_result, 7)
    device = torch.device("cuda:0")
    about = (64, Layout.CUSPARSELT_SM90, torch.bfloat16, device, transposed, transpose_result, True)
    assert searched == [(128, 72, *about)]
    assert (call.meta["val"].shape, call.meta["val"].stride()) == (before.shape, before.stride())
    assert repr(call.meta["nm"]) == "a mark"
    values, keywords = call.meta["eager_input_vals"]
    assert [v.stride() for v in values[:3]] == [(36, 1), dense.stride(), (1,)]
    assert keywords == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: product(half(64, 72), 96),  # rows are padded to 64
        lambda: product(half(48, 72)),  # and columns to 32
        lambda: product(half(64, 70)),
        lambda: product(gap(64, 72, 144)),  # a gap after each row
        lambda: product(gap(72, 64, 128).t()),
        lambda: product(gap(64, 72, 72, 4)),  # begins at 8 bytes
        lambda: product(half(64, 72), 128, gap(128, 1, 2).squeeze(1)),
        lambda: product(half(64, 72, device="cpu")),
        lambda: product(half(64, 72), layout=Layout.CUTLASS_SM80),
        lambda: product(half(64, 72), layout=Layout.ROW_MAJOR),
        lambda: product(half(64, 72, dtype=torch.float32)),
        lambda: product(half(64, 0)),
    ],
)
def test_what_needs_more_stays_an_operator(make: Any) -> None:
    with FakeTensorMode():
        assert lowered(make()) is None


def test_kernels_as_operators_are_asked_for() -> None:
    with FakeTensorMode():
        assert lowered(product(half(64, 72)), lower=False) is None


def test_symbolic_sizes_stay_an_operator() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    example = mode.from_tensor(
        torch.empty(512, 2), source=ConstantSource("rows"), symbolic_context=context
    )
    with mode:
        assert lowered(product(half(64, example.shape[0]))) is None


def test_inductor_calls_the_library_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(_cuda, "call_for", lambda *given: told.append(given))
    monkeypatch.setattr(algorithms, "fastest_for", lambda *_: 0)
    with FakeTensorMode():
        dense = torch.empty(256, 64, dtype=torch.bfloat16, device="cuda")
        assert lowered(product(dense)) is not None
    ((operator, module, name),) = told
    assert operator is LibraryMm.operator
    assert getattr(importlib.import_module(module), name) is plans.mm
