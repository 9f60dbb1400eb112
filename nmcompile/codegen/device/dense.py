"""No blocks at all: an operand is computed, and ``store_dense`` writes it."""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.rows import row_position, shifted


@triton.jit
def compute_dense(
    OPERAND: tl.constexpr, inputs, R, C,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    OPERANDS: tl.constexpr = 1,
):  # fmt: skip
    """Compute this program's tile, as ``rows.compress_rows`` goes over it."""
    for k in tl.static_range(ROWS // 64):
        at = row_position(ROWS, COLUMNS, OPERANDS, k)
        OPERAND(at, inputs, R, C, FIT, ISA)
        OPERAND(shifted(at, 8), inputs, R, C, FIT, ISA)
