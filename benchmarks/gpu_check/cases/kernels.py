"""Section ``kernels``: the compress kernels against the oracle, bit for bit, and their mean."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from benchmarks.gpu_check.cases.inputs import DTYPES, difference, on, operand, word
from benchmarks.gpu_check.device import poisoned
from benchmarks.gpu_check.events import Case, Session
from nmcompile import functional
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.hardware import has_triton
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat

DIMS = ([1, 0], [0], [1])  # what compiles longest comes first
FORMATS = ("2:4", "1:2")
METHODS = ("mvue", "mse")
_VALUES = ("normal", "ties", "special")
Shapes = dict[tuple[int, int], tuple[str, ...]]
#: Kinds of operands by shape: whole tiles; whole blocks, but not whole tiles; neither. Triton
#: compiles anew for sizes, strides and addresses that 16 divides or not: no more kinds than needed.
SHAPES: Shapes = {
    (128, 128): _VALUES,
    (256, 1024): ("normal",),
    (70, 160): (*_VALUES, "sliced"),
    (257, 1001): (*_VALUES, "transposed", "shifted"),
    (3, 5): _VALUES,
}
SEED, STREAMS = 81985529216486895, {1: 3, 0: 4}
#: Both sides run the same code there.
REHEARSED: Shapes = {(64, 64): _VALUES, (33, 37): ("normal", "transposed", "sliced", "shifted")}


def cases(rehearse: bool) -> list[Case]:
    """One case for each kernel source on the device's layout; other layouts; the mean."""
    same = {"section": "kernels", "parallel": True, "seconds": 3, "limit": 90}
    shapes = REHEARSED if rehearse else SHAPES
    found = [
        Case(
            name=f"compress {word(dtype)} {method} {format} {dims}",
            run=partial(
                compare, dtype=dtype, method=method, format=format, dims=dims, shapes=shapes
            ),
            **same,
        )
        for dtype in DTYPES
        for method in METHODS
        for format in FORMATS
        for dims in DIMS
    ]
    found += [
        Case(name=f"compress {layout}", run=partial(other_layout, layout=layout), **same)
        for layout in Layout
    ]
    found.append(Case(name="masks and kept places", run=masks, **same))
    draws = 40 if rehearse else 2000
    found += [
        Case(
            name=f"mean {word(dtype)} {format} dim {dim}",
            run=partial(mean, dtype=dtype, format=format, dim=dim, draws=draws),
            **same,
        )
        for dtype in DTYPES
        for format in FORMATS
        for dim in (1, 0)
    ]
    return found


def compress(
    x: Tensor, format: NMFormat, dims: list[int], method: str, layout: Layout, seed: int = SEED
) -> list[Tensor]:
    """``nm::compress`` of ``x``, where it lies."""
    number = torch.tensor([seed], device=x.device) if method == "mvue" else None
    streams = [STREAMS[dim] for dim in dims]
    shape = (format.n, format.m, method, str(layout))
    return torch.ops.nm.compress(x, number, streams, dims, *shape)


def compare(
    session: Session,
    dtype: torch.dtype,
    method: str,
    format: str,
    dims: list[int],
    shapes: Shapes,
    layout: Layout | None = None,
) -> None:
    """Packed and unpacked operands of every kind and shape against the oracle on the CPU."""
    layout, name = layout or session.device.layout, session.device.name
    nm = NMFormat.parse(format)
    for shape, kinds in shapes.items():
        for number, kind in enumerate(kinds):
            x = operand(kind, *shape, dtype, number)
            there = on(name, x)
            if not cusparselt.reads(layout, there):
                session.check("layout", False, f"{layout} is not what the library packs")
                return
            with poisoned():
                results = compress(there, nm, dims, method, layout)
            text = ""
            for dim, packed in zip(dims, results, strict=True):
                text += _against_oracle(packed, x, nm, dim, method, layout)
            session.check(f"{shape[0]}x{shape[1]} {kind}", not text, text)


def _against_oracle(
    packed: Tensor, x: Tensor, format: NMFormat, dim: int, method: str, layout: Layout
) -> str:
    seed = torch.tensor([SEED]) if method == "mvue" else None
    expected = packing.compress(x, seed, STREAMS[dim], format, dim, method, layout)
    if text := difference(packed, expected):
        return f"dim {dim}, packed: {text}; "
    size = x.shape[1 - dim], x.shape[dim]
    with poisoned():
        dense = torch.ops.nm.decompress(packed, *size, str(layout))
    text = difference(dense, packing.unpack(expected, *size, layout))
    return f"dim {dim}, unpacked: {text}; " if text else ""


def other_layout(session: Session, layout: Layout) -> None:
    """A few operands in a layout that another device reads; of its own, what writes it."""
    if layout == session.device.layout:
        generated = torch._C._dispatch_has_kernel_for_dispatch_key("nm::compress", "CUDA")
        session.check("kernels are generated on CUDA", generated and has_triton())
        return
    if layout.by_cusparselt:
        session.note("layout", "refused here: it would be packed by this device's library")
        return
    for method in METHODS:
        shapes: Shapes = {(128, 128): ("normal",), (70, 50): ("normal", "ties")}
        compare(session, torch.bfloat16, method, "2:4", [1, 0], shapes, layout)


def masks(session: Session) -> None:
    """Simulated masks, and what reads a packed operand, against the same operators on the CPU."""
    nm, layout = torch.ops.nm, str(Layout.ROW_MAJOR)
    for dtype, method, (n, m) in product(DTYPES, METHODS, ((2, 4), (1, 2))):
        x, other = operand("ties", 70, 160, dtype), operand("normal", 70, 160, dtype, 1)
        there = on(session.device.name, x)
        seed = torch.tensor([SEED]) if method == "mvue" else None
        place = session.device.name
        for dims in ([1], [0]):
            with poisoned():
                number = None if seed is None else seed.to(place)
                result = torch.ops.nm.prune(there, number, 3, n, m, dims, method)
            text = difference(result, torch.ops.nm.prune(x, seed, 3, n, m, dims, method))
            session.check(f"prune {word(dtype)} {method} {n}:{m} {dims}", not text, text)
        packed = compress(x, NMFormat(n, m), [1], method, Layout.ROW_MAJOR)[0]
        with poisoned():
            mask = nm.unpack_mask(packed.to(place), 70, 160, layout)
            like = nm.compress_like(other.to(place), packed.to(place), layout)
        same = bool((mask.cpu() == nm.unpack_mask(packed, 70, 160, layout)).all())
        session.check(f"unpack_mask {word(dtype)} {method} {n}:{m}", same)
        text = difference(like, nm.compress_like(other, packed, layout))
        session.check(f"compress_like {word(dtype)} {method} {n}:{m}", not text, text)


def mean(session: Session, dtype: torch.dtype, format: str, dim: int, draws: int) -> None:
    """Means over many seeds against ``x``: each within 5 sigma, and all together.

    The variance is exact: a kept element becomes x / p with probability p.
    """
    name, layout, nm = session.device.name, session.device.layout, NMFormat.parse(format)
    x = operand("normal", 64, 64, dtype)
    p = functional.inclusion_probability(x, nm, dim, "mvue").double()
    there, size = on(name, x), (64, 64)
    total = torch.zeros(64, 64, dtype=torch.float64, device=name)
    for seed in range(draws):
        (packed,) = compress(there, nm, [dim], "mvue", layout, seed * 7919 + 1)
        dense = torch.ops.nm.decompress(packed, *size, str(layout))
        total += dense if dim == 1 else dense.t()
    error = (total.cpu() / draws - x.double()).abs()
    kept = p >= 1
    session.check("elements that are certain", bool((error[kept] <= 1e-12).all()))
    variance = x.double().square() * (1 / p.clamp_min(1e-30) - 1) / draws
    common = ~kept & (draws * p * (1 - p) >= 25)
    z = error[common] / variance[common].sqrt()
    if z.numel() == 0:
        return session.note("mean", f"{draws} draws are too few")
    session.row("nm.compress", "worst sigma of the mean", [float(z.max())], x=f"{draws} draws")
    session.check("each within 5 sigma", bool(z.max() <= 5), f"{z.max():.2f} sigma")
    squares = float(z.square().mean())
    # Its standard deviation is below 0.05: over 1000 numbers, dependent in blocks of four.
    enough = len(z) < 1000 or 0.8 <= squares <= 1.2
    session.check("all together", enough, f"mean square of {len(z)} numbers: {squares:.3f}")
    return None
