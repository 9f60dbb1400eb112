"""``nm::prune_ragged``, ``nm::keep_mask_ragged``: a mask kernel on a copy whose groups are aligned.

The same on every device. Neither the host nor a shape waits for the offsets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmcompile.masks.blocks import dense_copy, layout_of
from nmcompile.masks.ragged import padded_size, places
from nmcompile.ops.schemas import LIBRARY, KeepMaskRagged, PruneRagged, Ragged


@torch.no_grad()  # a graph traced by hand is called with parameters
def _by_group(call: Ragged) -> Tensor:
    dtype = torch.bool if isinstance(call, KeepMaskRagged) else call.x.dtype
    out = torch.empty_like(call.x, dtype=dtype)
    if out.numel() == 0:
        return out
    dense = dense_copy(call.x)
    layout = layout_of(dense, [call.dim], call.m)
    at = places(call.offsets.to(dense.device), layout.size, call.m)
    length = padded_size(layout.size, call.offsets.numel(), call.m)
    aligned = dense.new_zeros(layout.outer, length, layout.inner)
    aligned.index_copy_(1, at, layout.view(dense))
    rows = out.permute(layout.perm).view(layout.outer, layout.size, layout.inner)
    torch.index_select(call.of_rows(aligned).run(), 1, at, out=rows)
    return out


def _register(cls: type[Ragged]) -> None:
    name = cls.operator.name()
    LIBRARY.impl(name, lambda *args: _by_group(cls(*args)), "CompositeExplicitAutograd")


_register(PruneRagged)
_register(KeepMaskRagged)
