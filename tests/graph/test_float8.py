"""Which value an 8-bit operand was cast from, by which scale, and where that is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.zoo.float8 import E4M3, E5M2, to_float8
from nmcompile.graph.aten import is_product
from nmcompile.graph.float8 import Cast, NoCast, cast_of, source_of

X, W, ONE = torch.randn(16, 32), torch.randn(32, 48), torch.ones(())


def product(f: Callable[..., Any], *args: Tensor) -> fx.Node:
    """The last matrix product that a function makes of ``X`` or of the arguments."""
    gm = make_fx(f, tracing_mode="fake", _allow_non_fake_inputs=True)(*(args or (X,)))
    return [n for n in gm.graph.nodes if is_product(n)][-1]


def found(f: Callable[..., Any], *args: Tensor, arg: str = "self") -> Cast:
    """How an operand of it came to 8 bits."""
    cast = cast_of(product(f, *args), arg)
    assert isinstance(cast, Cast)
    return cast


def missed(f: Callable[..., Any], *args: Tensor) -> str:
    """Why that is not known."""
    cast = cast_of(product(f, *args), "self")
    assert isinstance(cast, NoCast)
    return cast.why


def scaled(q: Tensor, scale: Tensor = ONE) -> Tensor:
    """The 8-bit product of ``q`` and some weight."""
    w = W[: q.shape[1]].to(E4M3).t().contiguous().t()
    return torch._scaled_mm(q, w, scale, ONE, out_dtype=torch.bfloat16)


def dynamic(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    q, scale = to_float8(x, dim=dim)
    return q, scale


class TestFound:
    """Each function casts its argument; its name in the graph is ``x_1``."""

    def check(self, f: Callable[[Tensor], Tensor], dynamic: bool = True) -> Cast:
        cast = found(lambda x: f(x))
        assert cast.source.name == "x_1"
        assert cast.is_dynamic == dynamic
        assert cast.steps[-1] is product(f).args[0] or cast.steps[-1].op == "call_function"
        return cast

    def test_one_scale_that_the_product_undoes(self) -> None:
        def f(x: Tensor) -> Tensor:
            q, scale = dynamic(x)
            return scaled(q, scale.reciprocal())

        cast = self.check(f)
        assert cast.scale is not None
        assert [n.name for n in cast.scale.tensors] == ["x_1"]
        assert cast.undo == ()

    def test_a_scale_that_divides(self) -> None:
        def f(x: Tensor) -> Tensor:
            scale = x.abs().amax() / 448
            return scaled((x / scale).to(E4M3), scale)

        self.check(f)

    def test_an_amax_in_two_steps(self) -> None:
        def f(x: Tensor) -> Tensor:
            scale = 448 / x.abs().amax(1).amax()
            return scaled((x * scale).to(E4M3), 1 / scale)

        self.check(f)

    def test_a_scale_for_each_block_of_a_row(self) -> None:
        def f(x: Tensor) -> Tensor:
            blocks = x.view(16, 2, 16)
            scale = 448 / blocks.abs().amax(-1, keepdim=True)
            back = ((blocks * scale).to(E4M3).float() / scale).view(16, 32)
            return back @ W

        self.check(f)

    def test_an_emulated_product_that_its_operand_undoes(self) -> None:
        def f(x: Tensor) -> Tensor:
            q, scale = dynamic(x, dim=1)
            return (q.float() / scale).bfloat16() @ W.bfloat16()

        self.check(f)

    def test_readers_that_undo_it(self) -> None:
        def f(x: Tensor) -> Tensor:
            q, scale = dynamic(x, dim=1)
            return (scaled(q).float() * scale.reciprocal()).bfloat16()

        assert [r.node.target for r in self.check(f).undo] == [torch.ops.aten.mul.Tensor]

    def test_views_and_zeros_behind(self) -> None:
        def f(x: Tensor) -> Tensor:
            q, scale = dynamic(x.t())
            padded = torch.nn.functional.pad(q, (0, 8)).contiguous()
            return torch._scaled_mm(padded, padded.t(), 1 / scale, ONE, out_dtype=torch.bfloat16)

        self.check(f)

    def test_a_scale_of_earlier_steps(self) -> None:
        def f(x: Tensor, scale: Tensor) -> Tensor:
            return scaled((x * scale).clamp(-448, 448).to(E4M3), scale.reciprocal())

        cast = found(f, X, ONE)
        assert (cast.source.name, cast.is_dynamic) == ("x_1", False)
        assert cast.scale is not None
        assert cast.scale.node.name == "scale_1"

    def test_no_scale(self) -> None:
        assert self.check(lambda x: scaled(x.to(E4M3)), dynamic=False).scale is None

    def test_either_operand(self) -> None:
        def f(x: Tensor, w: Tensor) -> Tensor:
            (q, one), (p, other) = dynamic(x), dynamic(w.t())
            scales = 1 / one, 1 / other
            return torch._scaled_mm(q, p.contiguous().t().t(), *scales, out_dtype=torch.bfloat16)

        args = X, torch.randn(48, 32)
        assert found(f, *args).source.name == "x_1"
        assert found(f, *args, arg="mat2").source.name == "w_1"
        assert source_of(product(f, *args), "mat2").name == "w_1"

    def test_the_newer_operator(self) -> None:
        from torch.nn.functional import ScalingType, scaled_mm

        def f(x: Tensor) -> Tensor:
            (q, scale), p = dynamic(x), W.to(E4M3).t().contiguous().t()
            one = ScalingType.TensorWise
            inverse = scale.reciprocal()
            return scaled_mm(q, p, inverse, one, ONE, one, output_dtype=torch.bfloat16)

        assert product(f).target is torch.ops.aten._scaled_mm_v2.default
        self.check(f)


class TestNotTheScale:
    """What looks like a part of the cast, and is the model's own."""

    def source(self, f: Callable[..., Tensor], *args: Tensor) -> str:
        return str(found(f, *args).source.target)

    def test_a_weight_that_multiplies(self) -> None:
        assert self.source(lambda x, g: scaled((x * g).to(E4M3)), X, X[0]) == "aten.mul.Tensor"

    def test_a_weight_before_the_scale(self) -> None:
        def f(x: Tensor, g: Tensor) -> Tensor:
            q, scale = dynamic(x * g)
            return scaled(q, 1 / scale)

        assert self.source(f, X, X[0]) == "aten.mul.Tensor"

    def test_an_activation_that_clamps(self) -> None:
        def f(x: Tensor) -> Tensor:
            q, scale = dynamic(x.clamp(0, 6))
            return scaled(q, 1 / scale)

        assert self.source(f) == "aten.clamp.default"
        assert self.source(lambda x: scaled(x.clamp(0, 6).to(E4M3))) == "aten.clamp.default"

    def test_a_cast_that_rounds(self) -> None:
        def f(x: Tensor) -> Tensor:
            q, scale = dynamic(torch.tanh(x).bfloat16())
            return scaled(q, 1 / scale)

        assert self.source(f) == "aten._to_copy.default"


def test_high_precision_is_no_cast() -> None:
    for f in (lambda x: x @ W, lambda x: (x.bfloat16().float() / x.abs().max()) @ W):
        traced = product(f)
        assert cast_of(traced, "self") is None
        assert source_of(traced, "self") is traced.args[0]


def test_values_that_arrive_in_8_bits_and_multiply_in_high_precision() -> None:
    assert cast_of(product(lambda q: q.float() @ W, X.to(E4M3)), "self") is None


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda q: scaled(q), "it comes into this graph in 8 bits"),
        (lambda q: scaled(torch.cat([q, q])), "it is made by aten.cat.default in 8 bits"),
        (lambda q: scaled(q.to(E5M2)), "it is cast from 8 bits to 8 bits"),
    ],
)
def test_no_value_in_high_precision(f: Callable[..., Any], why: str) -> None:
    assert missed(f, X.to(E4M3)) == why


def test_scales_that_are_not_known() -> None:
    def computed(x: Tensor) -> Tensor:
        scale = x.std()
        return scaled((x * scale).to(E4M3), 1 / scale)

    def of_bits(x: Tensor) -> Tensor:
        amax = x.view(16, 1, 32).abs().amax(-1, keepdim=True)
        scale = (amax.view(torch.int32) >> 23 << 23).view(torch.float32)  # a power of two
        back = ((amax.view(torch.int32) >> 23) << 23).view(torch.float32)
        return ((x.view(16, 1, 32) / scale).to(E4M3).float() * back).view(16, 32) @ W

    def not_undone(x: Tensor) -> Tensor:
        return scaled(dynamic(x)[0])

    def undone_by_one_reader(x: Tensor) -> tuple[Tensor, Tensor]:
        q, scale = dynamic(x)
        y = scaled(q)
        return y, y / scale

    def reshaped(x: Tensor) -> Tensor:
        q, scale = dynamic(x)
        return scaled(torch.nn.functional.pad(q, (0, 8)).view(-1, 16), 1 / scale)

    assert missed(computed).startswith("its scale is computed by aten.")
    assert missed(of_bits) == "its scale is computed by aten.view.dtype"
    assert missed(not_undone) == "nothing is seen to undo its scale"
    assert missed(undone_by_one_reader) == "not all that read the product undo its scale"
    assert missed(reshaped) == "it is padded and then reshaped"
