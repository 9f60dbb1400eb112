"""Section ``gain``: the sparse product alone over the dense one, in each role's orientation.

Everything that runs sparse gains from this figure and pays for the rest. Roles, for X [T, I],
W [O, I] and dY [T, O]; the operand named first is pruned 2:4 by MSE and compressed beforehand:

    fprop    X W^T      as X is stored
    dgrad    dY W       as dY is stored
    wgrad    dY^T X     dY transposed
    weight   W X^T      as W is stored; the result is transposed to Y

Every algorithm of the library is timed against ``torch.mm`` in turns, and checked against float64
on its first rows; ``own`` is the one that the package chooses. Power limits the clock: zeros show
by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from benchmarks.gpu_check.cases.inputs import relative_error
from benchmarks.gpu_check.cases.library import library, noted
from benchmarks.gpu_check.cases.products import DTYPE, Shape
from benchmarks.gpu_check.events import Case, Session
from benchmarks.gpu_check.targets import GAIN
from nmcompile.compressed import algorithms, cusparselt
from nmcompile.masks import reference

ROLES = ("fprop", "dgrad", "wgrad", "weight")
#: Gate and up of a Llama layer, the MLP of GPT-2 medium, Llama's key and value, a cube.
SHAPES = (
    Shape(16384, 4096, 14336),
    Shape(8192, 1024, 4096),
    Shape(16384, 4096, 1024),
    Shape(8192, 8192, 8192),
)
REHEARSED = (Shape(64, 128, 64),)
ROWS = 256  # of the sparse operand that are checked
TOLERANCE = 1e-2  # the result is rounded to bfloat16
_MOST_ALGORITHMS = 64
#: Among a worker's facts: names of the kernels that the library launched, and no dense product did.
SPARSE_KERNELS = "sparse kernels"


def cases(rehearse: bool) -> list[Case]:
    """A case for each shape and role, the shape of a network's layers first."""
    return [
        Case("gain", f"{shape} {role}", partial(measure, shape=shape, role=role), 4, 30)
        for shape in (REHEARSED if rehearse else SHAPES)
        for role in ROLES
    ]


class Way(NamedTuple):
    """How the library computes a product."""

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1

    def __str__(self) -> str:
        split = "" if self.split_k == 1 else f", split {self.split_k} mode {self.split_k_mode}"
        return f"alg {self.alg_id}{split}"


@dataclass
class Product:
    """One product on one kind of data: ``A [m, k]`` sparse and packed, ``B [k, n]`` dense."""

    session: Session
    shape: Shape
    role: str
    data: str
    found: dict[Way, tuple[float, float]] = field(default_factory=dict)  # dense, sparse seconds

    def __post_init__(self) -> None:
        device, (t, i, o) = self.session.device, self.shape
        fill = torch.zeros if self.data == "zeros" else torch.randn
        make = partial(fill, device=device.name, dtype=DTYPE)
        rows, columns = {"weight": (o, i), "fprop": (t, i)}.get(self.role, (t, o))
        self.pruned = make(rows, columns)
        self.dim = 0 if self.role == "wgrad" else 1
        sizes = {"fprop": (o, i), "dgrad": (o, i), "wgrad": (t, i), "weight": (t, i)}[self.role]
        other = make(*sizes)
        self.b = other.t() if self.role in ("fprop", "weight") else other
        self.transpose = self.role == "weight"
        number = (2, 4, "mse", str(device.layout))
        (self.packed,) = torch.ops.nm.compress(self.pruned, None, [0], [self.dim], *number)

    @property
    def sizes(self) -> dict[str, int]:
        """``m``, ``n`` and ``k``."""
        k, n = self.b.shape
        return {"m": self.pruned.shape[1 - self.dim], "n": n, "k": k}

    def dense(self, _: int) -> Tensor:
        """``torch.mm`` of the same product, in the orientation in which a graph has it."""
        a = self.pruned if self.dim == 1 else self.pruned.t()
        return torch.mm(self.b.t(), a.t()) if self.transpose else torch.mm(a, self.b)

    def sparse(self, way: Way) -> Callable[[int], Tensor]:
        """The library's product."""
        options = way._asdict() if way != Way() else {}
        return lambda _: library(
            self.session, self.packed, self.b, transpose_result=self.transpose, **options
        )

    @cached_property
    def expected(self) -> Tensor:
        """The first rows in float64, of what MSE keeps by the oracle."""
        a = self.pruned if self.dim == 1 else self.pruned.t()
        kept = reference.prune_and_mask(a[:ROWS].cpu(), None, 0, 2, 4, [1], "mse")[0]
        return kept.to(self.b.device).double() @ self.b.double()

    def error(self, way: Way) -> float:
        """Of the first rows, relative."""
        result = self.sparse(way)(0)
        return relative_error((result.t() if self.transpose else result)[:ROWS], self.expected)

    @cached_property
    def own(self) -> Way:
        """The package's choice."""
        layout = self.session.device.layout
        if self.session.device.rehearsal or not layout.by_cusparselt:
            return Way()
        how = layout, self.transpose, False
        return Way(algorithms.fastest_for(self.sizes["m"], self.b, *how))

    def time(self, way: Way, rounds: int, called: str = "") -> None:
        """Rows of dense and sparse times in turns, and of their ratio; ``called`` the way's name"""
        calls = {"torch.mm": self.dense, "_cslt_sparse_mm": self.sparse(way)}
        samples = self.session.device.time(calls, rounds=rounds)
        name = called or str(way)
        place = {"x": str(self.shape), "config": f"{self.role}, {name}, {self.data}"}
        for provider, times in samples.items():
            self.session.row(provider, "time (us)", [t * 1e6 for t in times], **place)
        dense, sparse = samples["torch.mm"], samples["_cslt_sparse_mm"]
        ratios = [d / s for d, s in zip(dense, sparse, strict=True)]
        self.session.row("_cslt_sparse_mm", GAIN, ratios, **place)
        self.found[way] = torch.tensor(dense).median().item(), torch.tensor(sparse).median().item()

    def name_kernels(self, way: Way) -> None:
        """Note what runs on the device; which names are the library's is remembered."""
        profile = self.session.device.profile
        sparse, dense = (
            {launch.name for launch in profile(partial(call, 0))}
            for call in (self.sparse(way), self.dense)
        )
        self.session.note(f"{way}: kernels", {"sparse": sorted(sparse), "dense": sorted(dense)})
        self.session.facts.setdefault(SPARSE_KERNELS, set()).update(sparse - dense)

    def entry(self, way: Way) -> dict[str, Any]:
        """A line of the table of gains."""
        dense, sparse = self.found[way]
        dtype = str(DTYPE).removeprefix("torch.")
        figures = {"dense_s": dense, "sparse_s": sparse, "gain": dense / sparse}
        about = {"role": self.role, "dtype": dtype, "data": self.data}
        return {**self.sizes, **about, **way._asdict(), **figures, "own": way == self.own}


def measure(session: Session, shape: Shape, role: str) -> None:
    """All rows of a product: the package's algorithm first, on normal data; the others; zeros."""
    product, layout = Product(session, shape, role, "normal"), session.device.layout
    own = product.own
    session.note("own", str(own))
    session.check("it is right", (e := product.error(own)) <= TOLERANCE, f"error {e:.2g}")
    session.check("the library packs as we do", cusparselt.reads(layout, product.pruned))
    product.time(own, 3, "own")
    session.note("the device then", session.device.state())
    session.note("gains", [product.entry(own)])
    product.name_kernels(own)
    if layout.by_cusparselt:
        _search(product)
    best = min(product.found, key=lambda way: product.found[way][1])
    session.note("best", str(best))
    product.name_kernels(best)
    zeros = Product(session, shape, role, "zeros")
    for way in dict.fromkeys((own, best)):
        zeros.time(way, 2)
    gains = [product.entry(way) for way in dict.fromkeys((own, best))]
    session.note("gains", gains + [zeros.entry(way) for way in zeros.found])


def _search(product: Product) -> None:
    """Time what the library's own search finds, every algorithm, and the best one split."""
    session, count = product.session, 2 if product.session.device.rehearsal else 8
    with noted(session, "search"):
        if not session.device.rehearsal:
            options = (None, None, None, product.transpose)
            search = torch._C._cusparselt.mm_search
            number, split, mode, count = search(product.packed, product.b, *options)
            session.note("search", {"found": [number, split, mode], "algorithms": count})
            _try(product, Way(number, split, mode if split > 1 else -1))
    for number in range(min(count, _MOST_ALGORITHMS)):
        _try(product, Way(number))
    best = min(product.found, key=lambda way: product.found[way][1])
    for mode in (1, 2):  # one kernel, two kernels
        _try(product, Way(best.alg_id, 2, mode))


def _try(product: Product, way: Way) -> None:
    """Time an algorithm, unless its result is wrong or it does not take the product."""
    session = product.session
    if way in product.found or session.left() < 3:
        return
    with noted(session, str(way)):
        error = product.error(way)
        if error > TOLERANCE or error != error:
            session.note(str(way), f"wrong: relative error {error:.2g}")
            return
        product.time(way, 1)
