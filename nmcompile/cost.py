"""How long a product takes, dense and sparse: bytes and FLOPs over what the device can do.

dense    max(2MNK / dense rate, (MK + KN + MN) bytes / bandwidth) + launch
sparse   compress the [R, K] operand: (2 + 9/8) bytes an element / bandwidth * method + launch
         multiply: max(2MNK / (dense rate * gain), bytes / bandwidth) + launch + library set-up
"""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.gemm import Method
from nmcompile.hardware import Ceilings

#: Time of a compress kernel over its byte floor.
_OVER_FLOOR = {Method.MSE: 1.25, Method.MVUE: 1.75}
_BYTES = 2  # of a 16-bit element
_COMPRESSED = 9 / 16


@dataclass(frozen=True)
class Estimate:
    """Seconds of one product: dense, and compress plus sparse product. ``how`` they are known."""

    dense: float
    sparse: float
    how: str

    @property
    def speedup(self) -> float:
        """Dense over sparse time; above 1 sparse is faster."""
        return self.dense / self.sparse

    def __str__(self) -> str:
        dense, sparse = self.dense * 1e6, self.sparse * 1e6
        return f"{self.how}: dense {dense:.0f} us, sparse {sparse:.0f} us ({self.speedup:.2f}x)"


def predict(
    m: int, n: int, k: int, pruned_rows: int, method: Method, ceilings: Ceilings
) -> Estimate:
    """The times of ``[M, K] x [K, N]`` of which one operand, ``[pruned_rows, K]``, is compressed.

    Args:
        m, n, k: sizes of the product.
        pruned_rows: m or n.
        method: how the survivors are chosen; what is neither MSE nor MVUE is pruned in a pass of
            its own (one more read and write) and then compressed by MSE.
        ceilings: of the device.
    """
    flops, elements = 2.0 * m * n * k, pruned_rows * k
    moved = _BYTES * (m * k + k * n + m * n)
    dense = max(flops / ceilings.dense, moved / ceilings.bandwidth) + ceilings.launch
    floor = _BYTES * (1 + _COMPRESSED) * elements / ceilings.bandwidth
    compress = floor * _OVER_FLOOR.get(method, _OVER_FLOOR[Method.MSE]) + ceilings.launch
    if method not in _OVER_FLOOR:
        compress += 2 * _BYTES * elements / ceilings.bandwidth + ceilings.launch
    less = moved - _BYTES * (1 - _COMPRESSED) * elements
    rate = ceilings.dense * ceilings.sparse_gain
    product = max(flops / rate, less / ceilings.bandwidth) + ceilings.launch + ceilings.setup
    return Estimate(dense, compress + product, "predicted")
