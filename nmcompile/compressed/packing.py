"""Compress and decompress in plain PyTorch, on any device: the oracle of the packing kernels.

What a block of 4 becomes, two values and two indices ``i0 < i1``:

    2:4  two kept      their indices and values
         one kept, s   (s, 3) with (v, 0); for s = 3: (2, 3) with (0, v)
         none kept     (2, 3) with (0, 0)
    1:2  each pair     the kept one; when none is kept, the pair's second element and 0

So missing survivors are the highest free indices of the block (of the pair) and hold +0. The keep
mask decides, never a comparison with zero: a kept -0.0 stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nmcompile.compressed.layouts import Layout
from nmcompile.errors import FormatError
from nmcompile.masks import reference
from nmcompile.masks.blocks import dense_copy
from nmcompile.masks.formats import Method, NMFormat


@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """A pruned matrix in the hardware's compressed format.

    Attributes:
        packed: values and metadata in one tensor (``nmcompile.compressed.layouts``).
        shape: of the matrix that was compressed.
        dim: the dimension that the blocks run along. The compressed operand ``[R, C]`` is the
            matrix for dim 1 and its transpose for dim 0.
        layout: the order of the metadata.
        format: 2:4 or 1:2.
    """

    packed: Tensor
    shape: tuple[int, int]
    dim: int
    layout: Layout
    format: NMFormat

    @property
    def operand_shape(self) -> tuple[int, int]:
        """``(R, C)``, the blocks along C."""
        rows, columns = self.shape
        return (rows, columns) if self.dim == 1 else (columns, rows)

    @property
    def values(self) -> Tensor:
        """The kept values, ``[R_pad, C_pad / 2]``; a view of ``packed``."""
        return split(self.packed, *self.operand_shape, self.layout)[0]

    @property
    def metadata(self) -> Tensor:
        """The kept indices, ``[R_pad * C_pad / 8]`` uint8 in the layout's order; a view."""
        return split(self.packed, *self.operand_shape, self.layout)[1]

    def decompress(self) -> Tensor:
        """The pruned matrix, ``shape``, contiguous; bit for bit what ``prune`` gives."""
        operand = unpack(self.packed, *self.operand_shape, self.layout)
        return operand if self.dim == 1 else operand.t().contiguous()

    def __repr__(self) -> str:
        rows, columns = self.shape
        dtype = str(self.packed.dtype).removeprefix("torch.")
        size = f"{self.packed.nbytes:,} bytes"
        if rows * columns:
            ratio = self.packed.nbytes / (rows * columns * self.packed.itemsize)
            size += f", {ratio:.3f} of dense"
        return (
            f"Compressed({rows} x {columns} {dtype} on {self.packed.device}, {self.format} along "
            f"dim {self.dim}, {self.layout}, {size})"
        )


def check_format(format: NMFormat, method: str) -> None:
    """Whether a mask of this kind can be compressed.

    Raises:
        FormatError: for formats other than 2:4 and 1:2.
        ValueError: for transposable masks.
    """
    if (format.n, format.m) not in ((2, 4), (1, 2)):
        raise FormatError(f"only 2:4 and 1:2 have a compressed format, {format} has none")
    if method == Method.TRANSPOSABLE:
        raise ValueError(
            'a transposable mask is not compressed directly: prune with method="transposable", '
            'then compress the result with method="mse"'
        )


def whole_blocks(x: Tensor, dim: int, m: int) -> Tensor:
    """``x``, 2-D, zero padded along ``dim`` to a multiple of m.

    The copy lies in memory in ``x``'s order, so that every block keeps its number, which selects
    its random numbers (``nmcompile.masks.blocks``).
    """
    extra = -x.shape[dim] % m
    if extra == 0:
        return x
    dense = dense_copy(x)
    if dense.stride(0) < dense.stride(1):
        return F.pad(dense.t(), (0, extra) if dim == 0 else (0, 0, 0, extra)).t()
    return F.pad(dense, (0, extra) if dim == 1 else (0, 0, 0, extra))


Masks = Callable[[Tensor, Tensor | None, int, int, int, Sequence[int], str], tuple[Tensor, Tensor]]


def compress(
    x: Tensor,
    seed: Tensor | None,
    stream: int,
    format: NMFormat,
    dim: int,
    method: str,
    layout: Layout,
    masks: Masks = reference.prune_and_mask,
) -> Tensor:
    """The packed tensor of one orientation of ``x``; arguments as of ``nm::compress``.

    ``masks`` gives the pruned values and the keep mask of a tensor.
    """
    whole = whole_blocks(x, dim, format.m)
    values, keep = masks(whole, seed, stream, format.n, format.m, [dim], method)
    if dim == 0:
        values, keep = values.t(), keep.t()
    return pack(keep, values, (x.shape[1 - dim], x.shape[dim]), layout, format, method)


def pack(
    keep: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    layout: Layout,
    format: NMFormat,
    method: str,
) -> Tensor:
    """The packed tensor of an operand ``[R, C]``.

    Args:
        keep: ``[R, C]``, or with whole blocks ``[R, next multiple of m]``; bool.
        values: the pruned values, of the same shape.
        shape: ``(R, C)``.
        layout: the order of the metadata.
        format: 2:4 or 1:2.
        method: what blocks of padding keep: n zeros for ``"mse"``, as of any block of zeros, and
            nothing for the random methods.

    Raises:
        ValueError: when the mask is not ``format`` (seen on the CPU alone).
    """
    r_pad, c_pad = layout.padded(*shape)
    n, m = format.n, format.m
    columns = torch.arange(c_pad, device=keep.device)
    padding = (columns % m < n) & (method == Method.MSE)
    whole = padding.repeat(r_pad, 1)
    whole[: keep.shape[0], : keep.shape[1]] = keep
    if whole.device.type == "cpu" and (whole.unflatten(1, (-1, m)).sum(-1) > n).any():
        raise ValueError(f"the mask keeps more than {n} elements in a block of {m}")
    kept = whole.view(r_pad, c_pad // 4, 4)
    indices = _indices(kept, format)  # [R_pad, C_pad / 4, 2]
    dense = values.new_zeros(r_pad, c_pad)
    dense[: values.shape[0], : values.shape[1]] = values
    chosen = dense.view(kept.shape).gather(-1, indices)
    chosen = torch.where(kept.gather(-1, indices), chosen, 0)

    packed = values.new_zeros(layout.packed_shape(*shape, values.dtype))
    into, metadata = split(packed, *shape, layout)
    into.copy_(chosen.view(into.shape))
    nibbles = torch.zeros(r_pad * c_pad // 4, dtype=torch.uint8, device=keep.device)
    nibbles[layout.nibbles(r_pad, c_pad, keep.device)] = (
        indices[..., 0] | indices[..., 1] << 2
    ).to(torch.uint8)
    metadata.copy_(nibbles[0::2] | nibbles[1::2] << 4)
    return packed


def _indices(kept: Tensor, format: NMFormat) -> Tensor:
    """The two indices of every block ``[..., 4]``: ``[..., 2]`` int64."""
    k0, k1, k2, k3 = kept.unbind(-1)
    if format.m == 2:
        first = torch.where(k0, 0, 1)
        second = torch.where(k2, 2, 3)
    else:
        count = kept.sum(-1)
        k3 = k3 | (count < 2)
        k2 = k2 | (count + (k3 & ~kept[..., 3]) < 2)
        first = torch.where(k0, 0, torch.where(k1, 1, 2))
        second = torch.where(k3, 3, torch.where(k2, 2, 1))
    return torch.stack((first, second), -1)


def unpack(packed: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """The dense operand ``[rows, columns]``, contiguous, of a packed tensor.

    Raises:
        ValueError: when ``packed`` has another shape than such an operand's.
    """
    r_pad, c_pad = layout.padded(rows, columns)
    values, _ = split(packed, rows, columns, layout)
    indices = kept_indices(packed, rows, columns, layout)
    blocks = packed.new_zeros(r_pad, c_pad // 4, 4)
    blocks.scatter_(-1, indices, values.view(indices.shape))
    return blocks.view(r_pad, c_pad)[:rows, :columns].contiguous()


def unpack_mask(packed: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """The keep mask ``[rows, columns]``, bool, of a packed tensor; errors as of ``unpack``."""
    ones = packed.contiguous().clone()
    split(ones, rows, columns, layout)[0].fill_(1)
    kept: Tensor = unpack(ones, rows, columns, layout) != 0
    return kept


def kept_indices(packed: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """The two indices of every block, ``[R_pad, C_pad / 4, 2]`` int64, of a packed operand."""
    r_pad, c_pad = layout.padded(rows, columns)
    _, metadata = split(packed, rows, columns, layout)
    nibbles = torch.stack((metadata & 15, metadata >> 4), -1).flatten()
    nibbles = nibbles[layout.nibbles(r_pad, c_pad, packed.device)].long()
    return torch.stack((nibbles & 3, nibbles >> 2), -1)


def split(packed: Tensor, rows: int, columns: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """Values ``[R_pad, C_pad / 2]`` and metadata ``[R_pad * C_pad / 8]`` uint8: views.

    Raises:
        ValueError: when ``packed`` has another shape than that of a ``[rows, columns]`` operand.
    """
    check_packed(packed, rows, columns, layout)
    r_pad, c_pad = layout.padded(rows, columns)
    count = r_pad * c_pad // 2
    flat = packed.view(-1)
    metadata = flat[count:].view(torch.uint8)[: r_pad * c_pad // 8]
    return flat[:count].view(r_pad, c_pad // 2), metadata


def random_packed(
    rows: int, columns: int, layout: Layout, draw: Callable[[tuple[int, int]], Tensor]
) -> Tensor:
    """A packed operand whose every block keeps its first two elements.

    Args:
        rows, columns: of the operand, padded already.
        layout: any of cuSPARSELt's; such metadata reads the same in each order of it.
        draw: random numbers of a shape, 16-bit.
    """
    packed = draw(layout.packed_shape(rows, columns, torch.bfloat16))
    packed.view(-1)[rows * columns // 2 :].view(torch.uint8).fill_(0x44)
    return packed


def check_packed(packed: Tensor, rows: int, columns: int, layout: Layout) -> None:
    """Raise ValueError unless ``packed`` can be that of a ``[rows, columns]`` operand."""
    expected = layout.packed_shape(rows, columns, packed.dtype)
    if tuple(packed.shape) != expected:
        raise ValueError(
            f"a packed tensor of shape {tuple(packed.shape)} is not that of a {rows} x {columns} "
            f"operand in {packed.dtype} and layout {layout}, which has shape {expected}"
        )
