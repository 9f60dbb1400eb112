"""Which of cuSPARSELt's algorithms multiplies fastest: its own search, while a graph is compiled.

The library numbers its kernels for a product from 0 on. The first is what PyTorch calls unless it
is told another one, and not the best: on an H100 (cuSPARSELt 0.8.0, bfloat16, 8192^3) it is 1.11 to
1.16 times as fast as a dense product, and the one that the search finds 1.47 times.
"""

from __future__ import annotations

import functools
import logging
import warnings

import torch

from nmcompile import _cuda, _torch
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning

log = logging.getLogger(__name__)


def fastest_for(
    rows: int, dense: torch.Tensor, layout: Layout, transpose_result: bool, bias: bool
) -> int:
    """``fastest`` of a packed operand of so many rows and ``dense [k, columns]``, real or fake.

    A search goes by the clock, so that two processes may find different algorithms, whose results
    differ by rounding: under ``torch.use_deterministic_algorithms`` it is the first one, 0.
    """
    if torch.are_deterministic_algorithms_enabled():
        _say_once_that_the_first_runs()
        return 0
    k, columns = dense.shape
    where = layout, dense.dtype, dense.device, not dense.is_contiguous()
    return fastest(rows, columns, k, *where, transpose_result, bias)


@functools.cache
def _say_once_that_the_first_runs() -> None:
    warnings.warn(
        "deterministic algorithms are asked for: sparse products run by the library's first "
        "algorithm, found without a clock, which may be slower than dense; with "
        'options={"nm.autotune": True} only those run sparse that gain by it',
        NMWarning,
        stacklevel=2,
    )


@functools.cache
def fastest(
    rows: int,
    columns: int,
    k: int,
    layout: Layout,
    dtype: torch.dtype,
    device: torch.device,
    by_columns: bool,
    transpose_result: bool,
    bias: bool,
) -> int:
    """The number of the algorithm that is fastest for ``[rows, k] x [k, columns]``.

    Searched once for each product of a process, on random numbers: zeros take less power, and
    others are fastest then. It needs room for the product's operands and result.

    Args:
        rows, columns, k: of the packed operand and of the dense one; multiples of what the layout
            pads to.
        layout: of the packed operand.
        dtype, device: of both.
        by_columns: whether the dense operand lies column by column.
        transpose_result: whether the result is ``[columns, rows]``.
        bias: whether one is added.
    """
    try:
        with _torch.real_tensors():  # the passes run while fake tensors are the default
            generator = torch.Generator(device).manual_seed(0)
            make = functools.partial(torch.randn, dtype=dtype, device=device, generator=generator)
            packed = packing.random_packed(rows, k, layout, make)
            dense = make(columns, k).t() if by_columns else make(k, columns)
            found = _cuda.cusparselt_search(
                packed, dense, make(rows) if bias else None, transpose_result
            )
    except torch.OutOfMemoryError:
        warnings.warn(
            f"no memory on {device} to search the sparse library's algorithms for a product "
            f"{rows} x {columns} x {k}: its first one runs, which may be slower",
            NMWarning,
            stacklevel=2,
        )
        return 0
    log.info("%d x %d x %d, %s: algorithm %d", rows, columns, k, dtype, found)
    return found
