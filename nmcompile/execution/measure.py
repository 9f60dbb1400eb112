"""Time products and compress kernels on the device: ``options={"nm.autotune": True}``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nmcompile import _cuda, _torch
from nmcompile.compressed import plans
from nmcompile.compressed.layouts import Layout
from nmcompile.execution.cost import OVER_BYTES, Kind, Predicted, Product
from nmcompile.execution.targets import KEPT_PLAN, Figure, Figures, Target
from nmcompile.masks.formats import Method
from nmcompile.ops.schemas import Compress, Mm, Pack, Prune

_COPIED = 2**28  # bytes, to find a bandwidth: several times any cache


class Measured(Predicted):
    """Seconds of the kernels of a unit, timed here; passes over memory go by the bandwidth."""

    how = "measured"

    def __init__(self, target: Target, device: str) -> None:
        super().__init__(target if target.figures else _with_figures(target, device))

    def dense(self, p: Product, kind: Kind) -> float:
        return _products(p.rows, p.columns, p.k, p.left, kind.layout, kind.dtype, kind.device)[0]

    def sparse(self, p: Product, kind: Kind) -> float:
        return _products(p.rows, p.columns, p.k, p.left, kind.layout, kind.dtype, kind.device)[1]

    def compress(self, rows: int, columns: int, dims: Sequence[int], kind: Kind) -> float:
        method = kind.method if (kind.method, 1) in OVER_BYTES else Method.MSE
        return _compress(rows, columns, tuple(dims), method, kind.layout, kind.dtype, kind.device)

    def pack(self, rows: int, columns: int, kind: Kind) -> float:
        return _pack(rows, columns, kind.layout, kind.dtype, kind.device)


def _with_figures(target: Target, device: str) -> Target:
    """Of a GPU without figures: its bandwidth by a copy, and what other GPUs' tables assume."""
    source = "a copy, timed while compiling"
    rate = 2 * _COPIED / _copy(_COPIED, device)
    bandwidth = Figure(value=rate, known="measured", source=source)
    unknown = Figure(value=1.0, known="assumed", source="not used: products are measured")
    launch = Figure(value=3e-6, known="assumed", source="usual for a kernel behind another")
    anew = Figure(value=640e-6, known="assumed", source="as measured on an H100")
    setup = KEPT_PLAN if plans.asked() else anew
    rates: dict[str, Figure] = {"bandwidth": bandwidth, "dense": unknown, "gain": unknown}
    return target.model_copy(update={"figures": Figures(**rates, launch=launch, setup=setup)})


@functools.cache
def _products(
    rows: int, columns: int, k: int, left: bool, layout: Layout, dtype: str, device: str
) -> tuple[float, float]:
    """Median seconds of ``[rows, K] x [K, columns]``: dense, and with a packed ``[rows, K]``.

    Args:
        rows, columns, k: sizes of the product.
        left: whether the compressed operand is the left one; else the result is its transpose.
        layout: of the compressed operand.
        dtype: ``"bfloat16"`` or ``"float16"``.
        device: where to measure; must be a CUDA device.
    """
    with _torch.real_tensors():  # the passes run while fake tensors are the default
        options = _options(dtype, device)
        pruned = torch.randn(rows, k, **options)
        dense = torch.randn(columns, k, **options).t()
        (packed,) = Compress(pruned, None, [0], [1], 2, 4, "mse", str(layout)).run()

        def sparse() -> Any:
            return Mm(packed, dense, rows, str(layout), transpose_result=not left).run()

        def plain() -> Any:
            return pruned @ dense if left else dense.t() @ pruned.t()

        return _seconds(plain), _seconds(sparse)


@functools.cache
def _compress(
    rows: int,
    columns: int,
    dims: tuple[int, ...],
    method: Method,
    layout: Layout,
    dtype: str,
    device: str,
) -> float:
    """Median seconds of compressing ``[rows, columns]`` along each of ``dims`` with one read."""
    with _torch.real_tensors():
        x = torch.randn(rows, columns, **_options(dtype, device))
        seed = torch.ones(1, dtype=torch.int64, device=device) if method.random else None
        streams = list(range(len(dims)))
        call = Compress(x, seed, streams, list(dims), 2, 4, str(method), str(layout))
        return _seconds(call.run)


@functools.cache
def _pack(rows: int, columns: int, layout: Layout, dtype: str, device: str) -> float:
    """Median seconds in which the library packs ``[rows, columns]``."""
    with _torch.real_tensors():
        x = torch.randn(rows, columns, **_options(dtype, device))
        pruned = Prune(x, None, 0, 2, 4, [1], "mse").run()
        return _seconds(Pack(pruned, str(layout)).run)


@functools.cache
def _copy(bytes: int, device: str) -> float:
    """Median seconds of a copy, which reads and writes so many bytes."""
    with _torch.real_tensors():
        source = torch.empty(bytes, dtype=torch.uint8, device=device)
        return _seconds(source.clone)


def _options(dtype: str, device: str) -> dict[str, Any]:
    """Of a random operand; the user's random state stays as it is."""
    generator = torch.Generator(device).manual_seed(0)
    return {"dtype": getattr(torch, dtype), "device": device, "generator": generator}


def _seconds(run: Callable[[], Any]) -> float:
    return _cuda.device_seconds(run, repeats=15)
