"""What a backend is told by Dynamo's frames: who called, with which module, in which part of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nmcompile._dynamo import (
    Caller,
    compiled_function_is_skipped,
    differentiates,
    ends_in_graph_break,
    in_compiled_autograd,
    is_compiled_wrapper,
    without_function_names,
)

X = torch.randn(4, 8)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Broken(nn.Module):
    """A graph break inside of a loop: Dynamo compiles the layers on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            torch._dynamo.graph_break()
        return x


class Backend:
    """Runs graphs as they are and notes who asked for them."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.breaks: list[bool] = []

        def backend(gm: fx.GraphModule, inputs: Any) -> Any:
            self.callers.append(Caller.of(backend))
            self.breaks.append(ends_in_graph_break(gm))
            return gm.forward

        self.function = backend


def in_place(model: nn.Module, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


def by_function(model: nn.Module, backend: Any) -> Callable[..., Any]:
    def step(x: Tensor) -> Tensor:
        return model(x)

    return torch.compile(step, backend=backend)


def as_wrapper(model: nn.Module, backend: Any) -> Any:
    return torch.compile(model, backend=backend)


@pytest.mark.parametrize("by", [as_wrapper, in_place, by_function])
@torch.no_grad()
def test_the_whole_model_is_known_however_it_is_compiled(by: Callable[..., Any]) -> None:
    model, backend = Layer(), Backend()
    by(model, backend.function)(X)
    (caller,) = backend.callers
    assert caller.whole is model
    assert caller.in_whole
    assert caller.prefix == ""
    assert caller.wrapper.compiler_name == "backend"
    assert backend.breaks == [False]


@torch.no_grad()
def test_a_part_of_it_is_told_apart() -> None:
    model, backend = Broken(), Backend()
    torch.compile(model, backend=backend.function)(X)
    assert {c.whole for c in backend.callers} == {model}
    parts = [c for c in backend.callers if c.roots and c.roots[0] in set(model.layers)]
    assert parts
    assert not any(c.in_whole for c in parts)


@torch.no_grad()
def test_a_graph_that_a_break_ends() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    backend = Backend()
    torch.compile(f, backend=backend.function)(X)
    assert backend.breaks == [True, False]
    assert {c.whole for c in backend.callers} == {None}


@torch.no_grad()
def test_a_data_parallel_copy_is_looked_through() -> None:
    model, backend = Layer(), Backend()
    torch.compile(nn.DataParallel(model), backend=backend.function)(X)
    caller = backend.callers[0]
    assert caller.whole is model
    assert caller.roots == (model,)
    assert caller.prefix == "module"


def test_nothing_is_known_where_dynamo_is_not_above() -> None:
    assert Caller.of(test_nothing_is_known_where_dynamo_is_not_above) == Caller()
    assert Caller().in_whole
    assert not in_compiled_autograd()


# Graphs that take derivatives themselves


def graph_of(*targets: Any) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for target in targets:
        x = graph.call_function(target, (x,))
    graph.output(x)
    return fx.GraphModule({}, graph)


def _autograd_grad(x: Any) -> Any:
    """Named as what Dynamo writes for ``torch.func.grad``."""
    return x


def _make_dual(x: Any) -> Any:
    """The same for ``torch.func.jvp``."""
    return x


@pytest.mark.parametrize("target", [torch.autograd.grad, _autograd_grad, _make_dual])
def test_a_derivative_is_seen_in_the_graph_and_below_it(target: Any) -> None:
    assert differentiates(graph_of(torch.sin, target))
    outer = graph_of(torch.sin)
    outer.body = graph_of(target)
    assert differentiates(outer)


def test_other_graphs_take_none() -> None:
    assert not differentiates(graph_of(torch.sin, torch.ops.aten.cos.default, abs))


# Versions


def test_pytorchs_own_classes_are_skipped_and_a_users_are_not() -> None:
    assert compiled_function_is_skipped(nn.Sequential(nn.Linear(8, 8)))
    assert compiled_function_is_skipped(nn.TransformerEncoderLayer(8, 2))
    assert not compiled_function_is_skipped(Layer())


def test_what_compile_made_of_a_module_is_told_from_the_module() -> None:
    assert is_compiled_wrapper(torch.compile(Layer()))
    assert not is_compiled_wrapper(Layer())
    assert not is_compiled_wrapper(3)


def test_a_reason_without_the_word_is_no_break() -> None:
    gm = graph_of(torch.sin)
    for reason in (None, SimpleNamespace(), SimpleNamespace(graph_break=False)):
        gm.compile_subgraph_reason = reason
        assert not ends_in_graph_break(gm)


def test_no_source_file_is_read_for_the_names_of_functions() -> None:
    torch._dynamo.funcname_cache.clearcache()
    with without_function_names():
        torch.compile(Layer(), backend="eager")(X)
    assert torch._dynamo.funcname_cache.cache == {}
    torch._dynamo.reset()
    torch.compile(Layer(), backend="eager")(X)
    assert torch._dynamo.funcname_cache.cache  # as it is without
