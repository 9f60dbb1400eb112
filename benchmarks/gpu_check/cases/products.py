"""Sections ``compress`` and ``products``: compressing over a copy's time; products of all sizes.

Roles, for X [T, I], W [O, I] and dY [T, O]; the first operand is compressed:

    fprop   X W^T      as X is stored            MSE (and MVUE)
    dgrad   dY W       as dY is stored           MVUE (and MSE)
    wgrad   dY^T X     dY transposed             MVUE (and MSE)
    both    dgrad and wgrad, from one read of dY
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from benchmarks.gpu_check.cases.inputs import STREAMS
from benchmarks.gpu_check.device import Call, Device
from benchmarks.gpu_check.events import Case, Session
from benchmarks.gpu_check.targets import FLOOR, SPEEDUP

DTYPE = torch.bfloat16
#: Bytes of a 16-bit operand's element: read, and written for each orientation.
_READ, _WRITTEN = 2.0, 1.125


class Shape(NamedTuple):
    """Tokens, inputs and outputs of a linear layer."""

    tokens: int
    inputs: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.tokens}x{self.inputs}x{self.outputs}"


CUBES = tuple(Shape(n, n, n) for n in (8192, 4096, 16384))
LAYERS = (
    Shape(16384, 4096, 14336),  # Llama: gate and up
    Shape(16384, 14336, 4096),  # down
    Shape(16384, 4096, 4096),  # query and output
    Shape(16384, 4096, 1024),  # key and value
    Shape(8192, 1024, 4096),  # GPT-2 medium
    Shape(32768, 4096, 14336),
)
#: Rows and columns: the one that targets are of, X and dY of Llama's gate and up.
OPERANDS = ((8192, 8192), (16384, 4096), (16384, 14336))
REHEARSED_OPERANDS = ((64, 64),)
REHEARSED = (Shape(64, 64, 64), Shape(48, 32, 96))


def cases(rehearse: bool) -> list[Case]:
    """The copy and the operands that are compressed; then the products, by importance."""
    operands = REHEARSED_OPERANDS if rehearse else OPERANDS
    found = [Case("compress", "copy", lambda session: bandwidth(session) and None, 2, 30)]
    for rows, columns in operands:
        run = partial(compressions, rows=rows, columns=columns)
        found.append(Case("compress", f"{rows}x{columns}", run, 3, 30))
    for shape in REHEARSED if rehearse else (*CUBES[:1], *LAYERS[:2], *CUBES[1:], *LAYERS[2:]):
        found.append(Case("products", str(shape), partial(products, shape=shape), 8, 90))
    return found


def bandwidth(session: Session) -> float:
    """Bytes a second of a copy, read and written; measured once in each process."""
    if "bandwidth" not in session.facts:
        device = session.device
        count = 2**12 if device.rehearsal else 2**30
        source, target = (torch.ones(count, dtype=torch.uint8, device=device.name) for _ in "ab")
        times = device.time({"copy": lambda _: target.copy_(source)})["copy"]
        rates = [2 * count / t for t in times]
        row = session.row("copy", "bandwidth (TB/s)", [r * 1e-12 for r in rates], x=f"{count}")
        session.facts["bandwidth"] = row.p50 * 1e12
    return float(session.facts["bandwidth"])


class Layer:
    """Random operands of one layer, in several sets, and what can be done with them."""

    def __init__(self, shape: Shape, device: Device, dtype: torch.dtype = DTYPE) -> None:
        self.shape, self.device, self.layout = shape, device, str(device.layout)
        t, i, o = shape.tokens, shape.inputs, shape.outputs
        self.sets = device.input_sets(2 * (t * i + o * i + t * o))
        make = partial(torch.randn, device=device.name, dtype=dtype)
        self.x, self.w, self.dy = (
            [make(*size) for _ in range(self.sets)] for size in ((t, i), (o, i), (t, o))
        )
        self.seed = torch.tensor([12345], device=device.name)

    def operands(self, role: str, i: int) -> tuple[Tensor, int, Tensor]:
        """What is compressed, along which dimension, and the dense operand."""
        i %= self.sets
        if role == "fprop":
            return self.x[i], 1, self.w[i].t()
        return (self.dy[i], 1, self.w[i]) if role == "dgrad" else (self.dy[i], 0, self.x[i])

    def dense(self, role: str) -> Call:
        """``torch.mm`` of a role."""

        def run(i: int) -> Any:
            a, dim, b = self.operands(role, i)
            return torch.mm(a if dim == 1 else a.t(), b)

        return run

    def compress(self, x: Tensor, dims: list[int], method: str) -> list[Tensor]:
        """The packed operands of ``x``."""
        seed = self.seed if method == "mvue" else None
        streams = [STREAMS[dim] for dim in dims]  # as in the checks: kernels that are compiled
        return torch.ops.nm.compress(x, seed, streams, dims, 2, 4, method, self.layout)

    @cached_property
    def packed(self) -> dict[str, list[Tensor]]:
        """The packed operand of every role and set."""
        found: dict[str, list[Tensor]] = {}
        for role in ("fprop", "dgrad", "wgrad"):
            operands = [self.operands(role, i) for i in range(self.sets)]
            found[role] = [self.compress(a, [dim], "mse")[0] for a, dim, _ in operands]
        return found

    def multiply(self, packed: Tensor, role: str, i: int) -> Tensor:
        """The sparse product of a role."""
        a, dim, b = self.operands(role, i)
        return torch.ops.nm.mm(packed, b, a.shape[1 - dim], self.layout, None, False, dim == 0)

    def product(self, role: str) -> Call:
        """The sparse product alone."""
        return lambda i: self.multiply(self.packed[role][i % self.sets], role, i)

    def sparse(self, role: str, method: str) -> Call:
        """Compress and multiply."""

        def run(i: int) -> Tensor:
            a, dim, _ = self.operands(role, i)
            return self.multiply(self.compress(a, [dim], method)[0], role, i)

        return run

    def both(self, method: str) -> Call:
        """Compress dY once for both backward products, and multiply."""

        def run(i: int) -> tuple[Tensor, Tensor]:
            straight, transposed = self.compress(self.dy[i % self.sets], [1, 0], method)
            return self.multiply(straight, "dgrad", i), self.multiply(transposed, "wgrad", i)

        return run


def products(session: Session, shape: Shape) -> None:
    """Times of every role, dense, sparse, and with the compression."""
    layer = Layer(shape, session.device)
    calls: dict[str, Call] = {}
    for role in ("fprop", "dgrad", "wgrad"):
        calls[f"torch.mm|{role}"] = layer.dense(role)
        calls[f"nm.mm|{role}"] = layer.product(role)
        for method in ("mse", "mvue"):
            calls[f"nm.compress + nm.mm|{role} {method}"] = layer.sparse(role, method)
    dgrad, wgrad = layer.dense("dgrad"), layer.dense("wgrad")
    calls["torch.mm|both"] = lambda i: (dgrad(i), wgrad(i))
    for method in ("mse", "mvue"):
        calls[f"nm.compress + nm.mm|both {method}"] = layer.both(method)
    large = layer.shape.tokens * layer.shape.inputs * layer.shape.outputs > 2**39
    samples = session.device.time(calls, rounds=3 if large else 6)
    x = str(layer.shape)
    for name, times in samples.items():
        provider, config = name.split("|")
        session.row(provider, "time (us)", [t * 1e6 for t in times], x=x, config=config)
        dense = samples[f"torch.mm|{config.split()[0]}"]
        if provider != "torch.mm":
            gain = [d / t for d, t in zip(dense, times, strict=True)]
            session.row(provider, SPEEDUP, gain, x=x, config=config)


def compressions(session: Session, rows: int, columns: int) -> None:
    """Each way to compress an operand, over the time in which a copy moves its bytes."""
    rate, device = bandwidth(session), session.device
    elements = rows * columns
    sets = device.input_sets(2 * elements)
    x = [torch.randn(rows, columns, device=device.name, dtype=DTYPE) for _ in range(sets)]
    number, layout = torch.tensor([12345], device=device.name), str(device.layout)

    def call(method: str, dims: list[int]) -> Call:
        seed, streams = (number if method == "mvue" else None), [STREAMS[dim] for dim in dims]
        return lambda i: torch.ops.nm.compress(
            x[i % sets], seed, streams, dims, 2, 4, method, layout
        )

    every = [(m, d) for m in ("mse", "mvue") for d in ([1], [0], [1, 0])]
    samples = device.time({f"{m} dims {d}": call(m, d) for m, d in every}, rounds=3)
    for config, times in samples.items():
        ways = 2 if "," in config else 1
        floor = (_READ + _WRITTEN * ways) * elements / rate
        place = {"x": f"{rows}x{columns}", "config": config}
        session.row("nm.compress", "time (us)", [t * 1e6 for t in times], **place)
        session.row("nm.compress", FLOOR, [t / floor for t in times], **place)
