"""How long a product takes, dense and sparse: bytes and FLOPs over what the device can do.

dense    max(2MNK / dense rate, (MK + KN + MN) bytes / bandwidth) + launch
sparse   compress the [R, K] operand: (2 + 9/8) bytes an element / bandwidth * method + launch
         multiply: max(2MNK / (dense rate * gain), bytes / bandwidth) + launch + library set-up
         padding:  sizes are those that the layout pads to, and a dense operand that has to be
                   padded is read and written once more
"""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.compressed.hardware import Ceilings
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import Method

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
    rows: int, columns: int, k: int, method: Method, layout: Layout, ceilings: Ceilings
) -> Estimate:
    """The times of ``[rows, K] x [K, columns]`` of which the operand ``[rows, K]`` is compressed.

    Args:
        rows, columns, k: sizes of the product.
        method: how the survivors are chosen; what is neither MSE nor MVUE is pruned in a pass of
            its own (one more read and write) and then compressed by MSE.
        layout: of the compressed operand.
        ceilings: of the device.
    """
    dense = _product(rows, columns, k, k, ceilings.dense, ceilings)
    r, c = layout.padded(rows, k)
    n = (columns + 7) // 8 * 8
    elements = r * c
    floor = _BYTES * (1 + _COMPRESSED) * elements / ceilings.bandwidth
    compress = floor * _OVER_FLOOR.get(method, _OVER_FLOOR[Method.MSE]) + ceilings.launch
    if method not in _OVER_FLOOR:
        compress += 2 * _BYTES * elements / ceilings.bandwidth + ceilings.launch
    if (c, n) != (k, columns):
        compress += _BYTES * (k * columns + c * n) / ceilings.bandwidth + ceilings.launch
    rate = ceilings.dense * ceilings.sparse_gain
    product = _product(r, n, c, _COMPRESSED * c, rate, ceilings) + ceilings.setup
    return Estimate(dense, compress + product, "predicted")


def _product(m: int, n: int, k: int, stored_k: float, rate: float, ceilings: Ceilings) -> float:
    moved = _BYTES * (m * stored_k + k * n + m * n)
    return max(2.0 * m * n * k / rate, moved / ceilings.bandwidth) + ceilings.launch
