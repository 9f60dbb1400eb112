"""The compressed layouts of a 2:4 operand: padded sizes, packed sizes, and where each index lies.

An operand ``[R, C]`` is zero padded to ``[R_pad, C_pad]``. Every block of 4 along a row has two
kept values and one nibble of metadata, ``i0 | i1 << 2`` with ``i0 < i1`` (1:2 is two pairs of such
a block). One contiguous tensor of the operand's dtype holds both, ``packed``:

    values    [R_pad, C_pad / 2], row-major
    metadata  R_pad * C_pad / 8 bytes, in the order of the layout
    padding   zeros, up to whole elements a row; none for 16-bit dtypes

Its shape is ``[R_pad, C_pad / 2 + ceil(C_pad / (8 * itemsize))]``: for 16-bit dtypes 9/16 C_pad.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from nmcompile.errors import nearest


class Layout(StrEnum):
    """The order of the metadata, and what the operand's sizes are padded to.

    ``CUSPARSELT_SM90``
        ``torch._cslt_sparse_mm`` on compute capability 9.0. A tile of 64 rows and 32 columns owns
        256 contiguous bytes. NVIDIA does not document it; source: the kernel
        ``sparse24_sm90_sparsify`` of pytorch/ao
        (``torchao/csrc/cuda/activation24/sparsify24.cu``), and an H100, where cuSPARSELt 0.8.0
        writes these bytes. It asks for room for whole pairs of tiles (192 x 160 takes 92 columns,
        not 90), so sizes are padded to 64 columns.
    ``CUSPARSELT_SM80``
        ``torch._cslt_sparse_mm`` on compute capability 8.x. Source: ``MetadataCuSparseLt`` in
        PyTorch's ``aten/src/ATen/native/sparse/cuda/SparseSemiStructuredTile.cu``.
    ``CUTLASS_SM80``
        ``torch._sparse_semi_structured_mm`` on compute capability 8.x. Source:
        ``torch/sparse/_semi_structured_conversions.py`` (CUTLASS's ``reorder_meta``).
    ``CUSPARSELT``
        ``torch._cslt_sparse_mm`` where nobody has published what it reads (compute capability 8.9,
        10.x and 12.x): the library packs a pruned operand itself, and nothing else can read it
        (``opaque``). Its size is taken to be that of the other layouts, which PyTorch's own use of
        the library relies on, and is checked when something is packed. Without a GPU operands are
        kept row after row, in tensors of that size.
    ``ROW_MAJOR``
        Row after row; no library reads it.
    """

    CUSPARSELT_SM90 = "cusparselt_sm90"
    CUSPARSELT_SM80 = "cusparselt_sm80"
    CUTLASS_SM80 = "cutlass_sm80"
    CUSPARSELT = "cusparselt"
    ROW_MAJOR = "row_major"

    @classmethod
    def parse(cls, name: str | Layout) -> Layout:
        """The layout of that name.

        Raises:
            ValueError: for an unknown name, with the nearest one.
        """
        try:
            return cls(name)
        except ValueError:
            raise ValueError(
                f"{name!r} is not a layout: {nearest(str(name), map(str, cls))}"
            ) from None

    @property
    def by_cusparselt(self) -> bool:
        """Whether cuSPARSELt is the library that reads it."""
        return self in (Layout.CUSPARSELT_SM80, Layout.CUSPARSELT_SM90, Layout.CUSPARSELT)

    @property
    def opaque(self) -> bool:
        """Whether only the library knows the order: no kernel of ours writes or reads it."""
        return self is Layout.CUSPARSELT

    @property
    def row_multiple(self) -> int:
        """R_pad is the next multiple of this."""
        return _MULTIPLES[self][0]

    @property
    def column_multiple(self) -> int:
        """C_pad is the next multiple of this."""
        return _MULTIPLES[self][1]

    def padded(self, rows: int, columns: int) -> tuple[int, int]:
        """``(R_pad, C_pad)``; the sizes may be symbolic."""
        r, c = self.row_multiple, self.column_multiple
        return (rows + r - 1) // r * r, (columns + c - 1) // c * c

    def packed_shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int]:
        """The shape of the packed tensor of a ``[rows, columns]`` operand; symbolic sizes too."""
        r_pad, c_pad = self.padded(rows, columns)
        per_element = 8 * dtype.itemsize
        return r_pad, c_pad // 2 + (c_pad + per_element - 1) // per_element

    def nibbles(self, rows: int, columns: int, device: torch.device | None = None) -> Tensor:
        """Where the metadata of each block lies: ``[rows, columns / 4]`` int64.

        The number is ``2 * byte + high``: the byte's offset from the start of the metadata, and
        whether its high nibble is meant. In 16-bit words (little-endian) the first block of four
        is the lowest nibble.

        Args:
            rows, columns: sizes that are padded already.
            device: where the result is wanted.
        """
        r = torch.arange(rows, device=device)[:, None]
        g = torch.arange(columns // 4, device=device)[None]  # block number; its first column is 4 g
        if self in (Layout.ROW_MAJOR, Layout.CUSPARSELT):
            return r * (columns // 4) + g
        if self is Layout.CUSPARSELT_SM90:
            tile = r // 64 * (columns // 32) + g // 8
            byte = tile * 256 + r % 64 // 16 * 64 + r % 8 * 8 + g % 4 * 2 + g % 8 // 4
            return 2 * byte + r // 8 % 2
        # In a 32 x 32 tile both Ampere layouts have the same 64 words.
        word = r % 8 * 8 + r % 32 // 16 * 4 + g % 8 // 4 * 2 + r % 16 // 8
        if self is Layout.CUTLASS_SM80:
            word = word + g // 8 * 2 * rows + r // 32 * 64
        else:
            tile = g // 16 * (rows // 128) + r // 128
            word = word + tile * 512 + g % 16 // 8 * 256 + r % 128 // 32 * 64
        return 4 * word + g % 4


_MULTIPLES = {
    Layout.CUSPARSELT_SM90: (64, 64),
    Layout.CUSPARSELT_SM80: (128, 64),
    Layout.CUTLASS_SM80: (32, 32),
    Layout.CUSPARSELT: (128, 64),  # whole tiles of every layout that is known
    Layout.ROW_MAJOR: (1, 32),
}
