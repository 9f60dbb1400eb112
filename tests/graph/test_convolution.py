"""Sizes and blocks of a convolution, counted: of ones, every result is the number of its terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from nmcompile.gemm import OperandKind, Role
from nmcompile.graph.aten import Convolution, ConvolutionBackward
from nmcompile.graph.convolution import Geometry

GRADIENT, ACTIVATION, WEIGHT = OperandKind.GRADIENT, OperandKind.ACTIVATION, OperandKind.WEIGHT
#: Without padding, so that no term of the implicit product is left out.
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(8, 12, 3), (2, 8, 10)),
    "2d": (lambda: nn.Conv2d(8, 12, (3, 2)), (2, 8, 9, 7)),
    "strided": (lambda: nn.Conv2d(8, 12, 3, stride=(2, 3)), (2, 8, 9, 10)),
    "dilated": (lambda: nn.Conv2d(8, 12, 3, dilation=2), (2, 8, 9, 9)),
    "3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 4, 5, 3)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=2), (2, 8, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8), (2, 8, 5, 5)),
    "pointwise": (lambda: nn.Conv2d(8, 12, 1), (2, 8, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 12, 3), (2, 8, 4, 5)),
    "transposed, strided": (lambda: nn.ConvTranspose2d(8, 12, 3, stride=2), (2, 8, 4, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(8, 12, 2, groups=2), (2, 8, 6)),
}


def nodes(layer: Any, *shape: int, mode: str = "real") -> tuple[fx.Node, fx.Node]:
    """The convolution of a layer and its backward."""
    layer.bias = None

    def step(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        y = torch.func.functional_call(layer, {"weight": w}, (x,))
        return torch.autograd.grad(y.sum(), (x, w))

    x, w = torch.ones(shape, requires_grad=True), layer.weight.detach().requires_grad_()
    graph = make_fx(step, tracing_mode=mode)(x, w).graph
    (forward,), (backward,) = Convolution.nodes(graph), ConvolutionBackward.nodes(graph)
    return forward, backward


def counts(layer: Any, shape: tuple[int, ...]) -> dict[Role, Tensor]:
    """The result of each product on ones: how many terms it adds up."""
    nn.init.ones_(layer.weight)
    layer.bias = None
    x = torch.ones(shape, requires_grad=True)
    y = layer(x)
    dx, dw = torch.autograd.grad(y.sum(), (x, layer.weight))
    return {Role.FPROP: y, Role.DGRAD: dx, Role.WGRAD: dw}


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_against_counting(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    forward, backward = nodes(layer, *shape)
    conv = Geometry.of(forward)
    assert conv == Geometry.of(backward)
    assert (conv.rank, conv.groups, conv.transposed) == (
        len(shape) - 2,
        layer.groups,
        layer.transposed,
    )
    for role, terms in counts(layer, shape).items():
        groups, m, n, k = conv.sizes(role)
        assert groups == layer.groups
        assert terms.sum() == groups * m * n * k
        # A result for each place of M x N, but of the image that is gathered under the window.
        if role is Role.WGRAD or (role is Role.DGRAD) == layer.transposed:
            assert terms.numel() == groups * m * n
            assert (terms == k).all()
        else:
            assert terms.max() <= k


@pytest.mark.parametrize("name", LAYERS)
def test_a_weights_blocks_run_along_the_channels_that_are_reduced(name: str) -> None:
    make, shape = LAYERS[name]
    forward, backward = nodes(make(), *shape)
    conv = Geometry.of(forward)
    weight = Convolution.of(forward).weight.meta["val"]
    x = ConvolutionBackward.of(backward).input.meta["val"]
    dy = ConvolutionBackward.of(backward).grad_output.meta["val"]
    for image, outputs in ((x, False), (dy, True)):
        w = conv.weight_operand(WEIGHT, reduces_over_outputs=outputs)
        data = conv.channels_operand(ACTIVATION, "input", outputs)
        (dim,) = w.dims
        assert weight.shape[dim] == w.extent * w.groups
        assert image.shape[1] == data.extent * data.groups
        assert w.extent == data.extent
        assert data.groups == conv.groups
        assert (w.kind, w.arg, w.tile_dims, w.tile_groups) == (
            WEIGHT,
            "weight",
            (0, 1),
            conv.groups,
        )
    # The two roles reduce over different dimensions of one weight.
    dims = {conv.weight_operand(WEIGHT, outputs).dims for outputs in (False, True)}
    assert dims == {(0,), (1,)}


@pytest.mark.parametrize("name", LAYERS)
def test_pixels_overlap_for_the_image_under_the_window_alone(name: str) -> None:
    make, shape = LAYERS[name]
    forward, backward = nodes(make(), *shape)
    conv, call = Geometry.of(forward), ConvolutionBackward.of(backward)
    inside, outside = call.input.meta["val"], call.grad_output.meta["val"]
    per_pixel = inside if conv.transposed else outside
    plain = conv.pixels_operand(GRADIENT, "grad_output", gathered=False)
    assert plain.obstacle is None
    assert plain.extent == math.prod(per_pixel.shape[d] for d in plain.dims)
    assert plain.dims == (0, *range(2, per_pixel.dim()))
    obstacle = conv.pixels_operand(ACTIVATION, "input", gathered=True).obstacle
    assert (obstacle is None) == (name == "pointwise")
    if obstacle:
        assert f"{'x'.join(map(str, conv.kernel))} kernel window" in obstacle


@pytest.mark.parametrize(
    ("make", "shape", "is_product"),
    [
        (lambda: nn.Conv2d(8, 12, 1), (2, 8, 5, 4), True),
        (lambda: nn.Conv2d(8, 12, 1, groups=2), (2, 8, 5, 4), True),
        (lambda: nn.Conv2d(8, 12, 1, stride=2), (2, 8, 5, 4), False),
        (lambda: nn.Conv2d(8, 12, 1, padding=1), (2, 8, 5, 4), False),
        (lambda: nn.Conv2d(8, 12, (1, 2)), (2, 8, 5, 4), False),
        (lambda: nn.Conv1d(8, 12, 1), (2, 8, 5), False),
        (lambda: nn.ConvTranspose2d(8, 12, 1), (2, 8, 5, 4), False),
    ],
)
def test_what_is_a_plain_product(make: Any, shape: tuple[int, ...], is_product: bool) -> None:
    assert Geometry.of(nodes(make(), *shape)[0]).is_product is is_product


def test_symbolic_sizes_stay_symbolic() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    layer = nn.Conv2d(8, 12, 3)
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"] = mode.from_tensor(torch.empty(3, 8, 9, 9), static_shapes=False)
    w.meta["val"] = mode.from_tensor(layer.weight.detach(), static_shapes=True)
    call = Convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    node = graph.call_function(Convolution.operator, call.args)
    node.meta["val"] = Convolution.operator(
        *fx.node.map_arg(call.args, lambda n: n.meta["val"])  # type: ignore[misc]
    )
    conv = Geometry.of(node)
    assert not isinstance(conv.sizes(Role.FPROP)[1], int)
    assert conv.sizes(Role.FPROP)[2:] == (12, 8 * 9)
    assert conv.pixels_operand(GRADIENT, "grad_output", gathered=False).extent is None
    assert conv.weight_operand(WEIGHT, reduces_over_outputs=False).extent == 8
