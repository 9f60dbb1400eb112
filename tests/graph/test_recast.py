"""Another value in the place of what was cast: its operand alone changes, and so does its scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.zoo.float8 import E4M3, multiply, to_float8
from nmcompile.graph.aten import is_product
from nmcompile.graph.float8 import Cast, cast_of
from nmcompile.graph.insert import Inserter
from nmcompile.graph.recast import Frame, recast

X, Z = torch.randn(2, 8, 32), 3 * torch.randn(2, 8, 32)
W = torch.randn(48, 32)


def replaced(f: Callable[..., Any], number: int = 0) -> fx.GraphModule:
    """``f(x, z)`` in which the left operand of one product is cast from ``z`` instead of ``x``."""
    gm = make_fx(f, tracing_mode="fake", _allow_non_fake_inputs=True)(X, Z)
    product = [n for n in gm.graph.nodes if is_product(n)][number]
    z = next(n for n in gm.graph.nodes if n.name == "z_1")
    cast = cast_of(product, "self")
    assert isinstance(cast, Cast)
    assert cast.source.name == "x_1"
    recast(Inserter(gm.graph), product, "self", cast, z)
    gm.graph.lint()
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def linear(x: Tensor, dim: int | None, emulate: bool = False) -> Tensor:
    bits, scale = to_float8(x, dim=dim)
    left = bits.reshape(-1, 32), scale.reshape(-1, 1) if dim else scale
    return multiply(left, to_float8(W.t(), dim=0 if dim else None), emulate)


@pytest.mark.parametrize("dim", [None, -1])
@pytest.mark.parametrize("emulate", [False, True])
def test_the_product_is_that_of_the_other_value(dim: int | None, emulate: bool) -> None:
    gm = replaced(lambda x, z: linear(x, dim, emulate))
    assert torch.equal(gm(X, Z), linear(Z, dim, emulate))
    placeholders = {n.name: len(n.users) for n in gm.graph.nodes if n.op == "placeholder"}
    assert placeholders["x_1"] == 0  # of amax and cast alike


def test_other_readers_of_the_cast_keep_it() -> None:
    def two(x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        bits, scale = to_float8(x)
        flat, other = bits.reshape(-1, 32), to_float8(torch.ones(16, 64))
        y = multiply((flat, scale), to_float8(W.t()), False)
        return y, multiply((flat.t(), scale), other, False), bits.float(), scale

    gm = replaced(lambda x, z: two(x, z))
    first, *rest = gm(X, Z)
    assert torch.equal(first, two(Z, Z)[0])
    assert all(torch.equal(a, b) for a, b in zip(rest, two(X, Z)[1:], strict=True))
    turned = replaced(lambda x, z: two(x, z), number=1)(X, Z)
    assert torch.equal(turned[0], two(X, Z)[0])
    assert torch.equal(turned[1], two(Z, Z)[1])


def test_a_scale_that_follows_something_else_stays() -> None:
    def fixed(x: Tensor, other: Tensor) -> Tensor:
        scale = 448 / other.abs().amax()
        left = (x * scale).to(E4M3).reshape(-1, 32), scale
        return multiply(left, to_float8(W.t()), False)

    gm = replaced(lambda x, z: fixed(x, z + 1))
    assert torch.equal(gm(X, Z), fixed(Z, Z + 1))


class TestFrame:
    """A value in the order in which a product reads it, and back."""

    def steps(self, f: Callable[[Tensor], Tensor]) -> tuple[fx.Graph, tuple[fx.Node, ...]]:
        graph = make_fx(f, tracing_mode="fake")(X).graph
        return graph, tuple(n for n in graph.nodes if n.op == "call_function")

    def inserted(self, f: Callable[[Tensor], Tensor]) -> list[str]:
        """What a frame of the views in ``f`` and the way back insert; they undo each other."""
        graph, steps = self.steps(f)
        (x,) = (n for n in graph.nodes if n.op == "placeholder")
        (output,) = (n for n in graph.nodes if n.op == "output")
        insert = Inserter(graph)
        with insert.before(output):
            frame = Frame.of(insert, steps[-1], steps, x)
            assert frame.value.meta["val"].shape == steps[-1].meta["val"].shape
            back = frame.undo(frame.value)
        new = [n for n in graph.nodes if n.op == "call_function" and n not in steps]
        graph.output((steps[-1], frame.value, back))
        graph.erase_node(output)
        seen, framed, returned = fx.GraphModule({}, graph)(X)
        assert torch.equal(seen, framed)
        assert torch.equal(returned, X)
        return [n.target.overloadpacket.__name__ for n in new]

    def test_reshapes(self) -> None:
        assert self.inserted(lambda x: x.view(16, 32)) == ["reshape"] * 2

    def test_permutes_are_one(self) -> None:
        assert self.inserted(lambda x: x.transpose(0, 1).permute(2, 1, 0)) == ["permute"] * 2
        assert self.inserted(lambda x: x.transpose(0, 1).transpose(1, 0)) == []

    def test_both(self) -> None:
        mixed = ["reshape", "permute", "permute", "reshape"]
        assert self.inserted(lambda x: x.view(16, 32).t()) == mixed

    def test_copies_are_no_views(self) -> None:
        names = ["permute", "reshape", "reshape", "permute"]
        assert self.inserted(lambda x: x.transpose(1, 2).clone().reshape(-1, 8)) == names
