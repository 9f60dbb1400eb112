"""Time one product on the device, dense and sparse: what ``options={"nm.autotune": True}`` does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from nmcompile import _torch
from nmcompile.compressed.layouts import Layout
from nmcompile.execution.cost import Estimate
from nmcompile.masks.formats import Method
from nmcompile.ops.schemas import Compress, Mm


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
    with _torch.real_tensors():  # the passes run while fake tensors are the default
        generator = torch.Generator(device).manual_seed(0)  # the user's random state stays as it is
        options: dict[str, Any] = {
            "dtype": getattr(torch, dtype),
            "device": device,
            "generator": generator,
        }
        pruned = torch.randn(rows, k, **options)
        dense = torch.randn(columns, k, **options).t()
        kind = method if method is Method.MVUE else Method.MSE
        seed = torch.ones(1, dtype=torch.int64, device=device) if kind.random else None

        def sparse() -> Any:
            call = Compress(pruned, seed, [0], [1], 2, 4, str(kind), str(layout))
            (packed,) = call.run()
            return Mm(packed, dense, rows, str(layout), transpose_result=not left).run()

        def plain() -> Any:
            return pruned @ dense if left else dense.t() @ pruned.t()

        return Estimate(_median(plain), _median(sparse), "measured")


def _median(run: Callable[[], Any], repeats: int = 15) -> float:
    """Of device time: the launches are queued behind a wait, so that no time of the host counts."""
    for _ in range(3):
        run()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _torch.keep_device_busy(2_000_000)  # about a millisecond
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2] * 1e-3
