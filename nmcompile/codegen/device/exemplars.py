"""One kernel per set of orientations, as the printer would write it; checked and measured as such.

``PROLOGUE`` is "identity" or "gelu" (tanh approximation, as of ``torch.nn.functional.gelu``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.both import compress_both
from nmcompile.codegen.device.columns import compress_columns
from nmcompile.codegen.device.functions import gelu_tanh
from nmcompile.codegen.device.rows import compress_rows
from nmcompile.codegen.device.tiles import load, load_words, round_words


@triton.jit
def identity_operand(at, inputs, R, C, FIT: tl.constexpr, ISA: tl.constexpr):
    """x itself."""
    x, x_stride = inputs
    return load_words(x, x_stride, at, R, C, FIT)


@triton.jit
def gelu_operand(at, inputs, R, C, FIT: tl.constexpr, ISA: tl.constexpr):
    """gelu(x), rounded to the type of x."""
    x, x_stride = inputs
    storage: tl.constexpr = "bf16" if x.dtype.element_ty == tl.bfloat16 else "fp16"
    a = load(x, x_stride, at, R, C, FIT)
    pieces = gelu_tanh(a[0], ISA), gelu_tanh(a[1], ISA), gelu_tanh(a[2], ISA), gelu_tanh(a[3], ISA)
    return round_words(pieces, at, R, C, storage, FIT, ISA)


@triton.jit
def rows_kernel(
    x, blob, R, C, x_stride, seed, stream,
    PROLOGUE: tl.constexpr, METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr,
    STORAGE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    """Blocks along the columns of x ``[R, C]``."""
    operand: tl.constexpr = gelu_operand if PROLOGUE == "gelu" else identity_operand
    compress_rows(
        operand, (x, x_stride), blob, R, C, tl.load(seed), stream,
        METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA,
    )  # fmt: skip


@triton.jit
def columns_kernel(
    x, blob, R, C, x_stride, seed, stream,
    PROLOGUE: tl.constexpr, METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr,
    STORAGE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    """Blocks along the rows of x ``[R, C]``: the blob is that of the transpose."""
    operand: tl.constexpr = gelu_operand if PROLOGUE == "gelu" else identity_operand
    compress_columns(
        operand, (x, x_stride), blob, R, C, tl.load(seed), stream,
        METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA,
    )  # fmt: skip


@triton.jit
def both_kernel(
    x, blob, transposed_blob, R, C, x_stride, seed, stream, transposed_stream,
    PROLOGUE: tl.constexpr, METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr,
    STORAGE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    """Both orientations of x ``[R, C]`` from one kernel."""
    operand: tl.constexpr = gelu_operand if PROLOGUE == "gelu" else identity_operand
    compress_both(
        operand, (x, x_stride), blob, transposed_blob, R, C, tl.load(seed), stream,
        transposed_stream, METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA,
    )  # fmt: skip
