"""The arithmetic of the cost model: FLOPs, bytes, launches and padding."""

from __future__ import annotations

import pytest

from nmcompile.compressed.hardware import _CEILINGS
from nmcompile.compressed.layouts import Layout
from nmcompile.execution.cost import Estimate, predict
from nmcompile.masks.formats import Method

H200 = _CEILINGS["H200"]


def predicted(rows: int, columns: int, k: int, method: Method = Method.MSE) -> Estimate:
    return predict(rows, columns, k, method, Layout.CUSPARSELT_SM90, H200)


def test_a_large_product_is_bound_by_flops_and_a_thin_one_by_bytes() -> None:
    large = predicted(8192, 8192, 8192)
    assert large.dense == pytest.approx(2 * 8192**3 / H200.dense + H200.launch)
    thin = predicted(16, 8192, 8192)
    moved = 2 * (16 * 8192 + 8192 * 8192 + 16 * 8192)
    assert thin.dense == pytest.approx(moved / H200.bandwidth + H200.launch)
    assert thin.speedup < 1


def test_compressing_costs_its_bytes_and_random_masks_cost_more() -> None:
    mse, mvue, uniform = (
        predicted(8192, 8192, 8192, m).sparse for m in (Method.MSE, Method.MVUE, Method.UNIFORM)
    )
    floor = 8192 * 8192 * (2 + 9 / 8) / H200.bandwidth
    assert mvue - mse == pytest.approx(0.5 * floor)
    assert uniform > mse + 4 * 8192 * 8192 / H200.bandwidth


def test_sizes_that_have_to_be_padded_cost_what_they_are_padded_to() -> None:
    even, odd = predicted(8192, 8192, 8192), predicted(8192, 8190, 8170)
    copies = 2 * (8170 * 8190 + 8192 * 8192) / H200.bandwidth
    assert odd.sparse == pytest.approx(even.sparse + copies + H200.launch)
    assert odd.dense < even.dense
