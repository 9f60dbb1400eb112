"""What a unit of products costs, dense and sparse: bytes and FLOPs over what the target can do.

A unit is the products that share a compressed operand. For each of them

    dense    max(2MNK / dense rate, (MK + KN + MN) * 2 bytes / bandwidth) + launch
    product  max(2MNK / (dense rate * gain of the shape), bytes / bandwidth) + launch
    bias     one more read and write of the result, where the library cannot add it and no
             elementwise reader of the result takes the addition in
    padding  sizes are those that the layout pads to; a dense operand that has to be padded, and a
             result that has to be cut, are read and written once more
    host     what a call of the library takes the host beyond what it takes the device, where the
             host is what a graph waits for: not in CUDA graphs, and not where all of its products
             together take the device longer than their calls the host, which fills a queue ahead

and once for all of them

    compress each kernel reads its operand once, 2 bytes an element, and writes 9/8 bytes for one
             orientation or twice that for both, times what was measured above the bytes.
             Whether it takes in the operand's producers is decided later, where that moves fewer
             bytes: it is charged without
    prune    a pass over the operand for each mask that the compress kernel does not make; for
             every one where the library packs itself, which then reads and writes it once more
             (and a copy where it reads the transpose of what lies in memory)
    exact    the mask and the values that the backward unpacks for backward = "exact". The rule asks
             for them, to save memory: they are shown and summed, and not held against the products
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from nmcompile.compressed.layouts import Layout
from nmcompile.execution.targets import Target
from nmcompile.masks.formats import Method

#: Time of a compress kernel over that of its bytes, by method and number of orientations: measured
#: on an H100, 16384 x 14336 (``gpu_check``, sections ``compress`` and ``tiles``).
OVER_BYTES = {
    (Method.MSE, 1): 1.04,
    (Method.MSE, 2): 1.11,
    (Method.MVUE, 1): 1.04,
    (Method.MVUE, 2): 1.28,
}
#: The same where the kernel computes its operand from other tensors; (MSE, 2) is assumed.
OVER_BYTES_COMPUTING = {
    (Method.MSE, 1): 1.05,
    (Method.MSE, 2): 1.2,
    (Method.MVUE, 1): 1.23,
    (Method.MVUE, 2): 1.38,
}
#: Of a kernel that computes several operands: its code is longer than what a GPU keeps at hand.
OVER_BYTES_SEVERAL = 2.7
_BYTES = 2  # of a 16-bit element
#: Of a compressed orientation, over those of the operand.
PACKED_BYTES = 9 / 16
_PACKED = _BYTES * PACKED_BYTES  # of an element
_UNPACKED = 2 + _PACKED  # to decompress an element, or to make, write and read its mask


@dataclass(frozen=True)
class Product:
    """``[rows, K] x [K, columns]`` of which the operand ``[rows, K]`` may be compressed.

    ``left``: it is the left operand of the graph's product; else the result is its transpose.
    ``along`` is the dimension, of the matrix that lies in memory, that blocks run along, and
    ``stream`` the random numbers: equal pairs are one request to the compress kernel. ``bias``
    says that a bias costs a pass, ``unpacked`` how many backward products read the packed operand.
    """

    site: int
    rows: int
    columns: int
    k: int
    left: bool = True
    along: int = 1
    stream: int = 0
    bias: bool = False
    unpacked: int = 0


@dataclass(frozen=True)
class Kind:
    """What the products of a unit have in common: how their operand is masked and packed."""

    method: Method
    layout: Layout
    dtype: str = "bfloat16"
    device: str = "cuda"


@dataclass(frozen=True)
class Terms:
    """Seconds of one product: dense, and of what runs in its place for it alone."""

    dense: float
    product: float
    bias: float
    padding: float
    host: float

    @property
    def own(self) -> float:
        """All that runs in the place of the dense product, but for what the unit shares."""
        return self.product + self.bias + self.padding + self.host


@dataclass(frozen=True)
class Shared:
    """Seconds that the products of a unit spend together."""

    compress: float
    prune: float
    exact: float

    @property
    def weighed(self) -> float:
        """What is held against the products."""
        return self.compress + self.prune


@dataclass(frozen=True)
class Estimate:
    """Seconds of some products, dense and sparse. ``how`` they are known: predicted or measured."""

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


@dataclass(frozen=True)
class UnitEstimate:
    """The terms of some products of a unit that run sparse together, by site, and shared ones."""

    how: str
    products: dict[int, Terms]
    shared: Shared

    @property
    def weighed(self) -> Estimate:
        """Of all products together, as they are decided."""
        dense = sum(t.dense for t in self.products.values())
        own = sum(t.own for t in self.products.values())
        return Estimate(dense, own + self.shared.weighed, self.how)

    @property
    def gain(self) -> float:
        """Seconds that the unit saves, as it is decided."""
        return self.weighed.dense - self.weighed.sparse

    def of(self, site: int) -> Estimate:
        """Of one product, with an equal share of what is weighed of the unit."""
        terms = self.products[site]
        share = self.shared.weighed / len(self.products)
        return Estimate(terms.dense, terms.own + share, self.how)

    def terms(self) -> dict[str, float]:
        """Every term that is not zero, summed over the products; ``dense`` among them."""
        own: dict[str, Any] = {
            f.name: sum(getattr(t, f.name) for t in self.products.values()) for f in fields(Terms)
        }
        all_terms = {**own, **{f.name: getattr(self.shared, f.name) for f in fields(Shared)}}
        return {name: seconds for name, seconds in all_terms.items() if seconds}


class Predicted:
    """Seconds of the kernels that a unit needs, from the figures of a target that has some."""

    how = "predicted"

    def __init__(self, target: Target) -> None:
        assert target.figures is not None
        self.target = target
        self.launch = target.figures.launch.value
        self.bandwidth = target.figures.bandwidth.value
        self.setup = target.figures.setup.value

    def moved(self, bytes: float) -> float:
        """A pass of its own that reads and writes so many bytes."""
        return bytes / self.bandwidth + self.launch if bytes else 0.0

    def dense(self, p: Product, kind: Kind) -> float:
        """The product as it is."""
        return self.multiply(1, p.rows, p.columns, p.k)

    def sparse(self, p: Product, kind: Kind) -> float:
        """The library's product of the padded sizes."""
        r, c, n = _padded(p, kind.layout)
        return self.multiply(1, r, n, c, gain=self.target.gain(r, n, c), stored=_PACKED / _BYTES)

    def multiply(
        self, batch: int, m: int, n: int, k: int, gain: float = 1.0, stored: float = 1.0
    ) -> float:
        """A product whose left operand holds the share ``stored`` of its elements."""
        assert self.target.figures is not None
        moved = _BYTES * batch * (m * k * stored + k * n + m * n)
        flops = 2.0 * batch * m * n * k / (self.target.figures.dense.value * gain)
        return max(flops, moved / self.bandwidth) + self.launch

    def compress(self, rows: int, columns: int, dims: Sequence[int], kind: Kind) -> float:
        """One kernel that reads ``[rows, columns]`` and packs it along each of ``dims``."""
        method = kind.method if (kind.method, 1) in OVER_BYTES else Method.MSE
        written = sum(_packed_bytes(rows, columns, dim, kind.layout) for dim in dims)
        moved = _BYTES * rows * columns + written
        return moved / self.bandwidth * OVER_BYTES[method, len(dims)] + self.launch

    def pack(self, rows: int, columns: int, kind: Kind) -> float:
        """The library packs a pruned operand ``[rows, columns]`` itself."""
        r, c = kind.layout.padded(rows, columns)
        return self.moved((_BYTES + _PACKED) * r * c)


def estimate(
    products: Sequence[Product], kind: Kind, clock: Predicted, hidden: bool = False
) -> UnitEstimate:
    """The terms of products that run sparse together.

    Args:
        products: of one unit; their operand is one matrix, read in one or both orientations.
        kind: how it is masked and packed.
        clock: where the seconds of single kernels come from.
        hidden: whether the device does not wait for the host.
    """
    terms = {p.site: _terms(p, kind, clock, hidden) for p in products}
    requests = list(dict.fromkeys((p.stream, p.along) for p in products))
    first = products[0]
    shape = (first.rows, first.k) if first.along == 1 else (first.k, first.rows)
    a_pass = clock.moved(2 * _BYTES * shape[0] * shape[1])
    prune = 0.0
    if kind.layout.opaque:
        prune = sum(a_pass if along == 1 else 2 * a_pass for _, along in requests)
        compress = len(requests) * clock.pack(first.rows, first.k, kind)
    else:
        compress = sum(clock.compress(*shape, dims, kind) for dims in _kernels(requests))
        if (kind.method, 1) not in OVER_BYTES:
            masks = 1 if kind.method is Method.TRANSPOSABLE else len(products)
            prune = masks * a_pass
    unpacked = max(p.unpacked for p in products)  # products of one operand unpack it once
    exact = unpacked * clock.moved(_UNPACKED * shape[0] * shape[1])
    return UnitEstimate(clock.how, terms, Shared(compress, prune, exact))


def _terms(p: Product, kind: Kind, clock: Predicted, hidden: bool) -> Terms:
    r, c, n = _padded(p, kind.layout)
    sparse = clock.sparse(p, kind)
    padding = clock.moved(_BYTES * (p.k * p.columns + c * n) if (c, n) != (p.k, p.columns) else 0)
    cut = (r, n) != (p.rows, p.columns)
    return Terms(
        dense=clock.dense(p, kind),
        product=sparse,
        bias=clock.moved(2 * _BYTES * p.rows * p.columns if p.bias else 0),
        padding=padding + clock.moved(2 * _BYTES * p.rows * p.columns if cut else 0),
        host=0.0 if hidden else max(0.0, clock.setup - sparse),
    )


def _kernels(requests: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The dims of each compress kernel: one for both orientations, else one for each request."""
    dims = [along for _, along in requests]
    return [[1, 0]] if sorted(dims) == [0, 1] else [[dim] for dim in dims]


def _padded(p: Product, layout: Layout) -> tuple[int, int, int]:
    """Rows, K and columns as the library multiplies them."""
    return *layout.padded(p.rows, p.k), (p.columns + 7) // 8 * 8


def _packed_bytes(rows: int, columns: int, dim: int, layout: Layout) -> float:
    r, c = layout.padded(*((rows, columns) if dim == 1 else (columns, rows)))
    return _PACKED * r * c
