"""Which producers of an operand its compress kernel computes itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.passes.fused import compress, fused, half, operators


def test_a_chain_with_a_bias_and_a_residual() -> None:
    def f(x: Any, b: Any, r: Any) -> Any:
        return compress((x + b).tanh() * 2.0 + r)

    _, (spec,) = fused(f, half(8, 32), half(32), half(8, 32, seed=1))
    assert operators(spec) == ["add", "tanh", "mul", "add"]
    assert [i.shape for i in spec.inputs] == ["full", "per_column", "full"]
    assert not spec.dense_results


def test_swiglu_reads_two_tensors() -> None:
    _, (spec,) = fused(lambda g, u: compress(F.silu(g) * u), half(8, 32), half(8, 32))
    assert operators(spec)[-1] == "mul"
    assert len(spec.inputs) == 2


def test_views_and_broadcasts_of_a_batch() -> None:
    def f(x: Any, row: Any, scale: Any) -> Any:
        return compress((x * row * scale).reshape(16, 32))

    _, (spec,) = fused(f, half(2, 8, 32), half(2, 8, 1), half(1))
    assert [i.shape for i in spec.inputs] == ["full", "per_row", "scalar"]


def test_a_producer_that_is_in_memory_is_read() -> None:
    def f(x: Any, y: Any) -> Any:
        h = x + y
        return compress(h * 2.0), h

    _, (spec,) = fused(f, half(8, 32), half(8, 32))
    assert operators(spec) == ["mul"]
    assert spec.inputs[0].source == "aten.add.Tensor"


def test_a_producer_that_others_compute_too_is_computed_again() -> None:
    def f(x: Any) -> Any:
        h = x.exp()
        return compress(h * 2.0), h.tanh().sum(0)

    _, (spec,) = fused(f, half(8, 32))
    assert operators(spec) == ["exp", "mul"]


def test_float32_between_producers_is_no_input() -> None:
    """As in a norm: its statistics are read, and the operand in float32 is computed again."""

    def f(x: Any, weight: Any) -> Any:
        wide = x.float()
        scale = (wide.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        return compress((wide * scale * weight).to(x.dtype)), (wide * scale).sum(0), scale

    _, (spec,) = fused(f, half(8, 32), half(32))
    shapes = {(i.shape, i.dtype) for i in spec.inputs}
    assert shapes == {("full", "bfloat16"), ("per_row", "float32"), ("per_column", "bfloat16")}


def test_a_wide_value_that_no_kernel_computes_is_rounded_before_it_is_read() -> None:
    def f(x: Any, y: Any) -> Any:
        return compress((x.float().cumsum(0) * y).to(x.dtype)), (x.float().cumsum(0)).sum(0)

    _, (spec,) = fused(f, half(8, 32), half(8, 32))
    assert not any(i.dtype == "float32" and i.source != "aten.cumsum.default" for i in spec.inputs)


def test_a_row_that_is_expanded_is_one_number_a_row() -> None:
    def f(x: Any, row: Any) -> Any:
        return compress(x * (row.expand(8, 32) / 32))

    _, (spec,) = fused(f, half(8, 32), half(8, 1))
    assert [i.shape for i in spec.inputs] == ["per_row", "full"]


def test_a_factor_of_a_sum_is_no_part_of_the_expression() -> None:
    def f(x: Any, y: Any) -> Any:
        return compress(torch.add(x, y, alpha=2).tanh()), compress(
            torch.add(x, 1.0, alpha=1).tanh()
        )

    _, (scaled, plain) = fused(f, half(8, 32), half(8, 32))
    assert "add" not in operators(scaled)
    assert operators(plain) == ["add", "tanh"]


def test_a_square_operand_tells_rows_from_columns() -> None:
    def f(x: Any, row: Any, column: Any) -> Any:
        return compress(x * row + column)

    _, (spec,) = fused(f, half(32, 32), half(32, 1), half(32))
    assert [i.shape for i in spec.inputs] == ["full", "per_row", "per_column"]


def test_channels_last_images_are_rows_of_channels() -> None:
    def f(image: Any, scale: Any, mask: Any) -> Any:
        y = (image * scale.view(1, -1, 1, 1) * mask).relu()
        return compress(y.permute(0, 2, 3, 1).reshape(-1, 32))

    image = half(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    gm, (spec,) = fused(f, image, half(32), half(2, 1, 4, 4))
    assert [i.shape for i in spec.inputs] == ["full", "per_column", "per_row"]
    assert operators(spec)[-1] == "relu"
    (node,) = gm.graph.find_nodes(op="call_function", target=torch.ops.nm.fused_compress.default)
    assert [list(n.meta["val"].shape) for n in node.args[0]] == [[32, 32], [32], [32]]


def test_images_row_by_row_are_no_rows_of_channels() -> None:
    def f(image: Any, scale: Any) -> Any:
        y = image * scale.view(1, -1, 1, 1)
        return compress(y.permute(0, 2, 3, 1).reshape(-1, 32))

    _, (spec,) = fused(f, half(2, 32, 4, 4), half(32))
    assert not spec.statements


def test_a_dropout_mask_is_an_input_and_its_random_numbers_are_not() -> None:
    def f(x: Any) -> Any:
        mask = torch.rand(x.shape) > 0.1
        return compress(torch.where(mask, x * 1.1, 0.0))

    _, (spec,) = fused(f, half(8, 32))
    assert "gt" not in operators(spec)
    assert "bool" in [i.dtype for i in spec.inputs]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: compress(x),
        lambda x: compress(x.clone()),
        lambda x: compress(x.cumsum(1)),
        lambda x: compress(x @ x.t() @ x),
        lambda x: compress(x.flip(0)),
    ],
)
def test_other_producers_are_read_as_they_are(f: Callable[..., Any]) -> None:
    _, (spec,) = fused(f, half(8, 32))
    assert spec.statements == ()
    assert [i.name for i in spec.inputs] == ["x"]
