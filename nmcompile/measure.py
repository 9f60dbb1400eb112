"""Time one product on the device, dense and sparse: what ``options={"nm.autotune": True}`` does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from nmcompile import ops_compressed
from nmcompile.cost import Estimate
from nmcompile.gemm import Method
from nmcompile.layouts import Layout


@functools.cache
def measure(
    rows: int,
    columns: int,
    k: int,
    left: bool,
    method: Method,
    layout: Layout,
    dtype: str,
    device: str,
) -> Estimate:
    """Median seconds of a product, and of compressing its operand ``[rows, K]`` and multiplying.

    Args:
        rows, columns, k: sizes of the product ``[rows, K] x [K, columns]``.
        left: whether the compressed operand is the left one; else the result is its transpose.
        method: how its survivors are chosen (one that is not MSE or MVUE is timed as MSE).
        layout: of the compressed operand.
        dtype: ``"bfloat16"`` or ``"float16"``.
        device: where to measure; must be a CUDA device.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
    pruned, dense = torch.randn(rows, k, **options), torch.randn(columns, k, **options).t()
    method = method if method is Method.MVUE else Method.MSE
    seed = torch.ones(1, dtype=torch.int64, device=device) if method.random else None

    def sparse() -> Any:
        (packed,) = ops_compressed.compress(pruned, seed, [0], [1], 2, 4, str(method), str(layout))
        return ops_compressed.mm(packed, dense, rows, str(layout), None, not left)

    def plain() -> Any:
        return pruned @ dense if left else dense.t() @ pruned.t()

    return Estimate(_median(plain), _median(sparse), "measured")


def _median(run: Callable[[], Any], repeats: int = 15) -> float:
    for _ in range(3):
        run()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2] * 1e-3
