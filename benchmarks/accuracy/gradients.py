"""What pruning does to the gradients of the weights: bias, noise and direction, layer by layer.

On K batches the gradients of the same parameters are computed dense, g_b, and under the policy,
p_b; e_b = p_b - g_b. The mean of e over batches and random numbers is estimated without the noise
of the estimate: |sum e|^2 - sum |e|^2, over K (K - 1), has its square as expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmcompile.schedule.warm_up import untouched

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Signal:
    """A layer's gradients at one step of training, as pruning changes them.

    Attributes:
        layer: the module's path; "all" is every weight together.
        cosine_batch: between p_b and g_b, the mean over batches.
        cosine_mean: between the mean of p and the mean of g over all batches.
        bias: norm of the mean of e, over the norm of the mean of g.
        noise: variance of e over batches and random numbers, over that of g over batches.
    """

    layer: str
    cosine_batch: float
    cosine_mean: float
    bias: float
    noise: float


@dataclass
class _Products:
    """Inner products of the gradients of some weights: those of other weights may be added.

    Each is [K + 1]: of every batch, and of the sum over batches.
    """

    gg: Tensor
    gp: Tensor
    pp: Tensor
    ee: Tensor

    @classmethod
    def of(cls, g: Tensor, p: Tensor) -> _Products:
        """``g`` and ``p`` [K, elements]."""
        g, p = (torch.cat([t, t.sum(0, keepdim=True)]).double() for t in (g, p))
        return cls(*((a * b).sum(1) for a, b in ((g, g), (g, p), (p, p), (p - g, p - g))))

    def plus(self, other: _Products) -> _Products:
        names = ("gg", "gp", "pp", "ee")
        return _Products(*(getattr(self, name) + getattr(other, name) for name in names))

    def signal(self, layer: str) -> Signal:
        count = len(self.gg) - 1
        cosine = self.gp / (self.gg * self.pp).sqrt().clamp_min(1e-300)
        bias = max(0.0, (self.ee[-1] - self.ee[:-1].sum()).item()) / (count * (count - 1))
        return Signal(
            layer,
            cosine[:-1].mean().item(),
            cosine[-1].item(),
            (bias / max(1e-300, self.gg[-1].item() / count**2)) ** 0.5,
            (_variance(self.ee) / _variance(self.gg).clamp_min(1e-300)).item(),
        )


def _variance(squares: Tensor) -> Tensor:
    count = len(squares) - 1
    return (squares[:-1].sum() - squares[-1] / count) / (count - 1)


def signals(
    dense: nn.Module, pruned: Callable[[Tensor, Tensor], Tensor], batches: Sequence[Batch]
) -> list[Signal]:
    """Compare gradients of two losses of the same parameters; nothing of the model changes.

    Args:
        dense: the loss as a module, which is not compiled.
        pruned: the same, compiled under a policy; its forward products are not pruned.
        batches: two at least.
    """
    weights = {name: p for name, p in dense.named_parameters() if p.ndim >= 2}
    found: dict[str, _Products] = {}
    with untouched(dense):
        pairs = [
            [torch.autograd.grad(loss(*batch), list(weights.values())) for batch in batches]
            for loss in (dense, pruned)
        ]
    for number, name in enumerate(weights):
        g, p = (torch.stack([grads[number].flatten() for grads in side]) for side in pairs)
        found[name.removeprefix("net.").removesuffix(".weight")] = _Products.of(g, p)
    total, *rest = found.values()
    for products in rest:
        total = total.plus(products)
    return [products.signal(layer) for layer, products in {**found, "all": total}.items()]
