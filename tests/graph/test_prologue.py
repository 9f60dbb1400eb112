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


def test_a_producer_that_others_read_stays_outside() -> None:
    def f(x: Any, y: Any) -> Any:
        h = x + y
        return compress(h * 2.0), h

    _, (spec,) = fused(f, half(8, 32), half(8, 32))
    assert operators(spec) == ["mul"]
    assert spec.inputs[0].source == "aten.add.Tensor"


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
