"""What a captured graph tells: which inputs are weights, and a fingerprint of all it depends on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._functorch._aot_autograd import descriptors as aot

import nmcompile
from nmcompile.capture.inputs import Capture
from nmcompile.gemm import OperandKind
from nmcompile.reason import Code, Reason

ACTIVATION, GRADIENT, WEIGHT = OperandKind.ACTIVATION, OperandKind.GRADIENT, OperandKind.WEIGHT


def graph_module(
    path: str = "L['self'].fc",
    module_class: Any = nn.Linear,
    target: Any = torch.matmul,
    further: tuple[Any, ...] = (),
) -> fx.GraphModule:
    """``target(x, w)``, as Dynamo writes it for a layer."""
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    node = graph.call_function(target, (x, w))
    node.meta["nn_module_stack"] = {"key": (path, module_class)}
    graph.output(node)
    gm = fx.GraphModule(nn.Module(), graph)
    node.args = (*node.args, *further)
    return gm


def inputs(x: Tensor | None = None) -> list[Any]:
    return [torch.ones(4, 8) if x is None else x, nn.Parameter(torch.ones(8, 6))]


# Weights


def test_parameters_and_what_dynamo_holds_at_an_address_are_weights() -> None:
    gm = graph_module()
    assert Capture.of(gm, inputs()).weights == {1}
    x, _ = (n for n in gm.graph.nodes if n.op == "placeholder")
    x.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}  # a buffer
    assert Capture.of(gm, inputs()).weights == {0, 1}
    x.meta["tensor_dict"] = {}
    assert Capture.of(gm, [torch.ones(4, 8), torch.ones(8, 6)]).weights == set()


def rows(function: Callable[..., Any], *args: Tensor) -> list[tuple[Any, ...]]:
    """Operands, what is pruned and the guess, of every product."""
    sites = nmcompile.explain(function, *args, policy="weights").sites
    return [(*s.operands, s.pruned, s.guess and s.guess.code) for s in sites]


def test_a_static_address_makes_no_weight() -> None:
    """CUDA graphs want inputs to be marked; Dynamo marks a parameter's gradient like itself."""
    x, keys = torch.randn(8, 16), torch.randn(8, 16)
    torch._dynamo.mark_static_address(keys)
    assert rows(lambda x, k: x @ k.t(), x, keys) == [(ACTIVATION, ACTIVATION, None, None)]
    layer = nn.Linear(16, 16, bias=False)
    torch._dynamo.mark_static_address(x)
    with torch.no_grad():
        assert rows(layer, x) == [(ACTIVATION, WEIGHT, WEIGHT, None)]
    layer(x).square().sum().backward()
    found = rows(lambda x: x @ layer.weight.grad, x)  # a gradient that is projected
    assert [(pruned, guess) for *_, pruned, guess in found] == [(None, Code.PARAMETER_GRADIENT)]


def test_buffers_are_weights() -> None:
    layer = nn.Module()
    layer.register_buffer("w", torch.randn(16, 16))
    layer.forward = lambda x: x @ layer.w  # type: ignore[method-assign]
    assert rows(layer, torch.randn(8, 16)) == [(ACTIVATION, WEIGHT, WEIGHT, None)]


def test_more_inputs_than_the_graph_reads_are_no_weights() -> None:
    assert Capture.of(graph_module(), [*inputs(), torch.ones(3), 5]).weights == {1}


def placeholder(desc: Any = None) -> fx.Node:
    node = fx.Graph().placeholder("primals_1")
    if desc is not None:
        node.meta["desc"] = desc
    return node


OUTPUT = aot.PlainAOTOutput(0)


@pytest.mark.parametrize(
    ("desc", "kind"),
    [
        (aot.PlainAOTInput(0), ACTIVATION),
        (aot.PlainAOTInput(1), WEIGHT),
        (aot.ParamAOTInput("fc.weight"), WEIGHT),
        (aot.BufferAOTInput("norm.mean"), WEIGHT),
        (aot.TangentAOTInput(OUTPUT), GRADIENT),
        (aot.ViewBaseAOTInput(aot.PlainAOTInput(1)), WEIGHT),
        (aot.SyntheticBaseAOTInput(aot.PlainAOTInput(0)), ACTIVATION),
        (aot.SubclassGetAttrAOTInput(aot.PlainAOTInput(1), "_local"), WEIGHT),
        (aot.SubclassGetAttrAOTInput(aot.TangentAOTInput(OUTPUT), "_local"), GRADIENT),
        (aot.PhiloxForwardSeedAOTInput(), None),
    ],
    ids=str,
)
def test_the_kind_of_an_input(desc: Any, kind: OperandKind | None) -> None:
    capture = Capture(frozenset({1}), "")
    assert capture.kind_of_input(placeholder(desc)) is kind


def test_an_input_of_a_sub_graph_is_unknown() -> None:
    kind = Capture(frozenset({1}), "").kind_of_input(placeholder())
    assert isinstance(kind, Reason)
    assert kind.code is Code.IN_SUBGRAPH


def test_a_constant_of_the_code_takes_no_side() -> None:
    gm = graph_module()
    gm.register_buffer("constant", torch.ones(1))
    assert Capture(frozenset(), "").kind_of_input(gm.graph.get_attr("constant")) is None


# The fingerprint


def fingerprint(gm: fx.GraphModule | None = None, given: list[Any] | None = None) -> str:
    return Capture.of(gm or graph_module(), inputs() if given is None else given).fingerprint


def other(x: Tensor, w: Tensor) -> Tensor:
    return x


class Layer(nn.Module):
    pass


def with_sub_graph(path: str) -> fx.GraphModule:
    """As a higher-order operator holds one."""
    gm = graph_module()
    gm.body = graph_module(path)
    return gm


CHANGES: dict[str, Callable[[], str]] = {
    "shape": lambda: fingerprint(given=inputs(torch.ones(5, 8))),
    "strides": lambda: fingerprint(given=inputs(torch.ones(8, 4).t())),
    "dtype": lambda: fingerprint(given=inputs(torch.ones(4, 8).half())),
    "device": lambda: fingerprint(given=inputs(torch.ones(4, 8, device="meta"))),
    "requires_grad": lambda: fingerprint(given=inputs(torch.ones(4, 8, requires_grad=True))),
    "no parameter": lambda: fingerprint(given=[torch.ones(4, 8), torch.ones(8, 6)]),
    "another input": lambda: fingerprint(given=[*inputs(), 3]),
    "its value": lambda: fingerprint(given=[*inputs(), 4]),
    "path": lambda: fingerprint(graph_module("L['self'].head")),
    "class": lambda: fingerprint(graph_module(module_class=Layer)),
    "operator": lambda: fingerprint(graph_module(target=torch.bmm)),
    "function": lambda: fingerprint(graph_module(target=other)),
    "argument": lambda: fingerprint(graph_module(further=(3,))),
    "nested argument": lambda: fingerprint(graph_module(further=([torch.float16, {"k": None}],))),
    "sub-graph": lambda: fingerprint(with_sub_graph("L['self'].a")),
    "path in a sub-graph": lambda: fingerprint(with_sub_graph("L['self'].b")),
}


def test_it_tells_apart_what_the_plan_depends_on() -> None:
    found = {"": fingerprint()} | {name: change() for name, change in CHANGES.items()}
    assert len(set(found.values())) == len(found)
    assert found == {"": fingerprint()} | {name: change() for name, change in CHANGES.items()}


@pytest.mark.parametrize(
    "contexts",
    [
        [torch.no_grad],
        [torch.inference_mode],
        [lambda: torch.autocast("cpu", torch.bfloat16)],
        [lambda: torch.autocast("cpu", torch.float16)],
        [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ],
)
def test_it_tells_modes_apart(contexts: list[Any]) -> None:
    seen = {fingerprint()}
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
            seen.add(fingerprint())
    assert len(seen) == 1 + len(contexts)


def test_autocast_to_two_types_differs() -> None:
    found = set()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found.add(fingerprint())
    assert len(found) == 2


def test_it_is_the_same_in_every_process() -> None:
    """No address of an object is in it: not of a function, nor of an argument."""

    def local() -> Callable[[Tensor, Tensor, Any], Tensor]:
        return lambda x, w, _: x @ w

    assert fingerprint(graph_module(target=local(), further=(object(),))) == fingerprint(
        graph_module(target=local(), further=(object(),))
    )
    values = [inputs(torch.full((4, 8), v)) for v in (1.0, 2.0)]
    assert fingerprint(given=values[0]) == fingerprint(given=values[1])


def test_wrappers_do_not_change_a_path() -> None:
    paths = ("L['self'].fc", "L['self']._orig_mod.fc", "G['model'].fc")
    assert len({fingerprint(graph_module(path)) for path in paths}) == 1
