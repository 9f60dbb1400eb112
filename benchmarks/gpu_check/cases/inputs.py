"""Operands for the checks of correctness, and comparisons that say where two tensors differ."""

from __future__ import annotations

import torch
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat

DTYPES = (torch.bfloat16, torch.float16)
SEED, STREAMS = 81985529216486895, {1: 3, 0: 4}


def word(dtype: torch.dtype) -> str:
    """``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def operand(kind: str, rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A CPU tensor ``[rows, columns]`` that may start at any address and have any strides.

    ``normal``; ``ties`` of few magnitudes, zeros and -0.0 among them; ``special``: also inf, NaN,
    subnormal and huge numbers; ``transposed``, ``sliced`` (a gap after each row) and ``shifted``
    (not aligned to 16 bytes) are normal numbers elsewhere in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(rows + 1, columns + 8, generator=generator).to(dtype)
    if kind == "transposed":
        return whole.flatten()[: rows * columns].view(columns, rows).t()
    if kind == "sliced":
        return whole[:rows, :columns]
    if kind == "shifted":
        return whole.flatten()[1 : 1 + rows * columns].view(rows, columns)
    x = whole.flatten()[: rows * columns].view(rows, columns).clone()
    if kind == "ties":
        x = (2 * x.float()).round().to(dtype) / 2
    if kind == "special":
        tiny = torch.finfo(dtype)
        odd = [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, tiny.smallest_normal / 4, tiny.max]
        where = torch.randint(12, (rows, columns), generator=generator)
        for i, value in enumerate(odd):
            x = torch.where(where == i, torch.tensor(value, dtype=dtype), x)
    return x


def on(device: str, x: Tensor) -> Tensor:
    """``x`` on the device, with the strides and the misalignment that it has on the CPU."""
    if device == "cpu":
        return x
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return storage.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def compress(
    x: Tensor, format: NMFormat, dims: list[int], method: str, layout: Layout, seed: int = SEED
) -> list[Tensor]:
    """``nm::compress`` of ``x``, where it lies."""
    number = torch.tensor([seed], device=x.device) if method == "mvue" else None
    streams = [STREAMS[dim] for dim in dims]
    shape = (format.n, format.m, method, str(layout))
    return torch.ops.nm.compress(x, number, streams, dims, *shape)


def difference(actual: Tensor, expected: Tensor) -> str:
    """The first element whose bits differ, unless both are NaN; empty when equal."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"{actual.dtype} {list(actual.shape)}, not {expected.dtype} {list(expected.shape)}"
    actual, expected = actual.cpu().contiguous().flatten(), expected.cpu().contiguous().flatten()
    width = actual.itemsize
    whole = {2: torch.int16, 4: torch.int32}[width]
    same = actual.view(whole) == expected.view(whole)
    same |= actual.isnan() & expected.isnan()
    if same.all():
        return ""
    wrong = (~same).nonzero().flatten()
    at = int(wrong[0])
    numbers = (int(t.view(whole)[at]) % 256**width for t in (actual, expected))
    bits = [f"{number:0{2 * width}x}" for number in numbers]
    return f"{len(wrong)} of {len(same)} differ, first at {at}: {bits[0]}, not {bits[1]}"


def byte_difference(actual: Tensor, expected: Tensor) -> str:
    """The first byte that differs; empty when equal."""
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)}, not {list(expected.shape)}"
    ours, theirs = (t.cpu().contiguous().flatten().view(torch.uint8) for t in (expected, actual))
    wrong = (ours != theirs).nonzero().flatten()
    if len(wrong) == 0:
        return ""
    at = int(wrong[0])
    return f"{len(wrong)} bytes differ, first at {at}: {int(theirs[at])}, not {int(ours[at])}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of ``expected``; NaN when anything is NaN."""
    scale = expected.double().norm().item()
    return (actual.double() - expected.double()).norm().item() / (scale or 1.0)
