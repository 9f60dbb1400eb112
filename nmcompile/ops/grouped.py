"""``nm::grouped_gradient``: one gradient of transformers' grouped product, as transformers has it.

A product for each group. Like transformers' own operators it lets the host read the offsets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmcompile.ops.schemas import LIBRARY, GroupedGradient


@torch.no_grad()  # a graph traced by hand is called with parameters
def _grouped_gradient(call: GroupedGradient) -> Tensor:
    x, w, dy = call.input, call.weight, call.grad_output
    result = torch.zeros_like(w if call.of_weight else x)
    start = 0
    for group, end in enumerate(call.offs.tolist()):
        if start == end:
            continue
        if call.of_weight:
            torch.mm(x[start:end].T, dy[start:end], out=result[group])
        else:
            torch.mm(dy[start:end], w[group].T, out=result[start:end])
        start = end
    return result


LIBRARY.impl(
    "grouped_gradient",
    lambda *args: _grouped_gradient(GroupedGradient(*args)),
    "CompositeExplicitAutograd",
)
