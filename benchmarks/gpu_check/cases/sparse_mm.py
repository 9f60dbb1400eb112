"""Section ``kernels``: ``nm::mm`` against products in float64, in every role."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_check.cases.inputs import (
    DTYPES,
    SEED,
    STREAMS,
    compress,
    difference,
    on,
    operand,
    relative_error,
    word,
)
from benchmarks.gpu_check.device import poisoned
from benchmarks.gpu_check.events import Case, Session
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat

#: Largest relative Frobenius error: the result is rounded to 16 bits, sums are in float32.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
#: Tokens, inputs, outputs.
SIZES = ((256, 512, 384), (2048, 1024, 512), (64, 4096, 128), (70, 50, 33), (17, 130, 9), (1, 8, 5))
REHEARSED = ((64, 96, 32), (17, 30, 9))
KINDS = ("normal", "transposed", "sliced", "shifted")
NM = NMFormat(2, 4)


def cases(rehearse: bool) -> list[Case]:
    """One case for each dtype and role."""
    return [
        Case(
            section="kernels",
            name=f"mm {word(dtype)} {role}",
            run=partial(check, dtype=dtype, sizes=REHEARSED if rehearse else SIZES),
            parallel=True,
            seconds=3,
            limit=90,
        )
        for dtype in DTYPES
        for role, check in (("fprop", fprop), ("dgrad", dgrad), ("wgrad", wgrad))
    ]


def fprop(session: Session, dtype: torch.dtype, sizes: tuple[tuple[int, int, int], ...]) -> None:
    """Y = X W^T with X compressed, then with W compressed, bias and transposed result."""
    for tokens, inputs, outputs in sizes:
        x, w = (
            operand("normal", tokens, inputs, dtype, 1),
            operand("normal", outputs, inputs, dtype),
        )
        for kind in KINDS:
            dense = operand(kind, outputs, inputs, dtype, 2).t()
            _product(session, f"X {kind}", x, 1, "mse", dense)
            dense = operand(kind, inputs, tokens, dtype, 3)
            bias = operand("sliced", outputs, 1, dtype, 4)[:, 0]
            _product(session, f"W {kind}", w, 1, "mse", dense, bias, transpose_result=True)
            _product(session, f"W {kind}, not transposed", w, 1, "mse", dense, bias)


def dgrad(session: Session, dtype: torch.dtype, sizes: tuple[tuple[int, int, int], ...]) -> None:
    """dX = dY W with dY compressed."""
    for tokens, inputs, outputs in sizes:
        dy = operand("normal", tokens, outputs, dtype, 1)
        for kind in KINDS:
            dense = operand(kind, outputs, inputs, dtype, 2)
            _product(session, f"dY {kind}", dy, 1, "mvue", dense)


def wgrad(session: Session, dtype: torch.dtype, sizes: tuple[tuple[int, int, int], ...]) -> None:
    """dW = dY^T X with dY^T compressed, from dY where it lies; then with X^T."""
    for tokens, inputs, outputs in sizes:
        dy = operand("normal", tokens, outputs, dtype, 1)
        for kind in KINDS:
            dense = operand(kind, tokens, inputs, dtype, 2)
            _product(session, f"dY^T {kind}", dy, 0, "mvue", dense)
            x = operand("normal", tokens, inputs, dtype, 3)
            other = operand(kind, tokens, outputs, dtype, 4)
            _product(session, f"X^T {kind}", x, 0, "mse", other, transpose_result=True)


def _product(
    session: Session,
    title: str,
    pruned: Tensor,
    dim: int,
    method: str,
    dense: Tensor,
    bias: Tensor | None = None,
    transpose_result: bool = False,
) -> None:
    """Compress ``pruned`` along ``dim``, multiply, and compare both steps."""
    name, layout = session.device.name, session.device.layout
    rows, k = pruned.shape[1 - dim], pruned.shape[dim]
    there, other = on(name, pruned), on(name, dense)
    added = None if bias is None else on(name, bias)
    with poisoned():
        (packed,) = compress(there, NM, [dim], method, layout)
        result = torch.ops.nm.mm(
            packed, other, rows, str(layout), added, transpose_result, dim == 0
        )
    a = _kept(packed, rows, k, layout)
    expected = a.double() @ other.double()
    if added is not None:
        expected += added.double()[:, None]
    expected = expected.t() if transpose_result else expected
    size = f"{rows}x{dense.shape[1]}x{k}"
    text = "" if result.shape == expected.shape else f"shape {list(result.shape)}; "
    if not text:
        error = relative_error(result, expected)
        bound = TOLERANCE[pruned.dtype]
        text = "" if error <= bound else f"relative error {error:.2g}, bound {bound:g}; "
    if not result.is_contiguous():
        text += "not contiguous; "
    if title.endswith(" normal"):  # the same operand for every kind
        seed = torch.tensor([SEED]) if method == "mvue" else None
        oracle = packing.compress(pruned, seed, STREAMS[dim], NM, dim, method, layout)
        if other_pattern := difference(a, packing.unpack(oracle, rows, k, layout)):
            text += f"the operand: {other_pattern}"
    session.check(f"{title} {size}", not text, text)


def _kept(packed: Tensor, rows: int, k: int, layout: Layout) -> Tensor:
    """The operand that was multiplied."""
    if not cusparselt.reads(layout, packed):
        raise RuntimeError("cuSPARSELt packs in another layout: see the section probe")
    return packing.unpack(packed, rows, k, layout)
