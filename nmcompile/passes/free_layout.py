"""Let Inductor choose how a tensor lies in memory that is pruned without random numbers.

    before   nm.prune(x [N,C,H,W], None, 0, 2, 4, [1], "mse")
    after    nm.prune_in_any_layout(x, None, 0, 2, 4, [1], "mse")

Inductor gives ``nm.prune`` the order of strides that was traced, since the numbers of blocks follow
memory and select the random numbers. It computes convolutions of channels-last images on the CPU,
whatever was traced: it would write the operand of each once more, in an order that nobody else
wants, and copy what is left of it back. Without random numbers the mask is the same in any order.
"""

from __future__ import annotations

from torch import fx

from nmcompile.ops.schemas import Prune, PruneInAnyLayout
from nmcompile.passes.plan import Kernels


def free_layout(kernels: Kernels) -> None:
    """Rewrite every such call; where kernels are generated, they are made for given strides."""
    for node in bound(kernels):
        node.target = PruneInAnyLayout.operator


def bound(kernels: Kernels) -> list[fx.Node]:
    """The calls whose operand need not lie as it was traced; changes nothing."""
    return [n for n in kernels.called(Prune) if Prune.of(n).seed is None]
