"""The operator ``torch.ops.nm.unpack_mask``: the keep mask that a packed operand's metadata names.

unpack_mask(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor
    bool [rows, columns], contiguous. Where a random method kept fewer than two elements of a
    block, the free indices that fill it are True as well (``nmcompile.packing``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmcompile import packing
from nmcompile.layouts import Layout

_LIBRARY = torch.library.Library("nm", "FRAGMENT")


def _fake_unpack_mask(packed: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    return packed.new_empty(rows, columns, dtype=torch.bool)


def _unpack_mask(packed: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    order, ones = Layout.parse(layout), packed.contiguous().clone()
    packing.split(ones, rows, columns, order)[0].fill_(1)
    return packing.unpack(ones, rows, columns, order) != 0


_LIBRARY.define(
    "unpack_mask(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)
_LIBRARY.impl("unpack_mask", _unpack_mask, "CompositeExplicitAutograd")
torch.library.register_fake("nm::unpack_mask", _fake_unpack_mask, lib=_LIBRARY)
