"""Compression and its producers become one kernel; what else it writes, and what stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.passes.fused import compress, fused, half, nm

SEED = torch.ones(1, dtype=torch.int64)


def test_an_operand_with_other_readers_is_written_by_the_kernel_once() -> None:
    def f(x: Any, seed: Any) -> Any:
        y = x.sigmoid() * x
        return compress(y, (1, 0), seed), y.sum(0)

    gm, (spec,) = fused(f, half(8, 32), SEED)
    assert spec.dense_results
    assert spec.orientations == "both"
    assert not any(n.target is torch.ops.aten.sigmoid.default for n in gm.graph.nodes)


def test_other_readers_do_not_wait_for_random_numbers_that_come_later() -> None:
    def f(x: Any) -> Any:
        y = x.sigmoid() * x
        total = y.sum(0)
        return compress(y, (1, 0), torch.ones(1, dtype=torch.int64) * total.sum().long()), total

    _, (spec,) = fused(f, half(8, 32))
    assert not spec.statements


def test_producers_stay_where_nothing_is_to_be_fused() -> None:
    gm, (spec,) = fused(lambda x: compress(x.tanh() * 2.0), half(8, 32), fuse=False)
    assert not spec.statements
    assert any(n.target is torch.ops.aten.tanh.default for n in gm.graph.nodes)


def test_kernels_of_equal_layers_are_one_kernel() -> None:
    def f(x: Any, y: Any) -> Any:
        return compress(x.tanh() * 2.0), compress(y.tanh() * 2.0)

    _, specs = fused(f, half(8, 32), half(16, 32))
    assert specs[0] == specs[1]


@pytest.mark.parametrize(
    ("x", "method"),
    [
        (torch.randn(8, 32), "mse"),  # float32 has no kernel
        (half(32, 8).t(), "mse"),  # lies column by column
        (half(8, 32), "uniform"),
    ],
)
def test_what_no_kernel_takes_stays_an_operator(x: torch.Tensor, method: str) -> None:
    def f(x: Any) -> Any:
        seed = torch.ones(1, dtype=torch.int64)
        return nm.compress(x, seed, [0], [1], 2, 4, method, "row_major")

    gm, specs = fused(f, x)
    assert specs == []
    assert "nm.compress" in gm.code
