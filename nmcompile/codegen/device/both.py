"""Both orientations of x: one kernel writes the blob of x and the blob of its transpose.

A program goes over its tile twice, each time with the fragments that the orientation wants. The
second time the inputs come from the cache: one read of memory serves both. Holding the tile in
registers instead takes twice as many, or an exchange through shared memory: both were slower by
the static check.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nmcompile.codegen.device.columns import compress_strips
from nmcompile.codegen.device.rows import compress_rows


@triton.jit
def compress_both(
    OPERAND: tl.constexpr, inputs, blob, transposed_blob, R, C, seed, stream, transposed_stream,
    METHOD: tl.constexpr, N: tl.constexpr, LAYOUT: tl.constexpr, STORAGE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    OPERANDS: tl.constexpr = 1,
):  # fmt: skip
    """Compress this program's tile into both blobs, with independent random streams.

    Args: as of every tile function, see the package's docstring.
    """
    compress_rows(
        OPERAND, inputs, blob, R, C, seed, stream,
        METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA, OPERANDS,
    )  # fmt: skip
    compress_strips(
        OPERAND, inputs, transposed_blob, R, C, seed, transposed_stream,
        METHOD, N, LAYOUT, STORAGE, ROWS, COLUMNS, FIT, ISA, True, OPERANDS,
    )  # fmt: skip
