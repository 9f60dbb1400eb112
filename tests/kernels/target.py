"""Where the suite runs kernels, and how they are held against the oracle, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from benchmarks.gpu_check.cases.inputs import difference, on, operand
from benchmarks.gpu_check.device import poisoned
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.hardware import layout_on
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat

SEED = torch.tensor([0x123456789ABCDEF])
ORIENTATIONS = {"both": (1, 0), "columns": (0,), "rows": (1,)}  # what compiles longest comes first
FORMATS = ((2, 4), (1, 2))
METHODS = ("mvue", "mse")
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def chosen() -> str:
    """Where kernels run: ``interpreter``, ``cuda``, ``cuda:N``, ``cpu``, or nowhere."""
    return os.environ.get("NMCOMPILE_KERNELS_ON", "")


def kind() -> str:
    """``chosen`` without the number of the GPU."""
    return chosen().partition(":")[0]


def seed_of(method: str) -> Tensor | None:
    """What an operator takes as its seed."""
    return SEED if method == "mvue" else None


@dataclass(frozen=True)
class Target:
    """``cuda``; ``interpreter``: Triton's; ``cpu``: PyTorch in the place of every kernel."""

    place: str

    @property
    def kind(self) -> str:
        """The place without the number of the GPU."""
        return self.place.partition(":")[0]

    @property
    def name(self) -> str:
        """The device of the tensors."""
        return self.place if self.kind == "cuda" else "cpu"

    @property
    def layout(self) -> Layout:
        """What the device's library reads."""
        return layout_on(self.name).layout or Layout.CUSPARSELT_SM90

    def packs(self, layout: Layout) -> bool:
        """Whether kernels write ``layout`` here: another GPU's library would pack its own."""
        return self.kind != "cuda" or layout == self.layout or not layout.by_cusparselt

    def run(self, operator: Any, *arguments: Any) -> Any:
        """An operator on CPU tensors, computed here; fresh memory is filled with NaN.

        In the interpreter it is what is registered for CUDA, called on the tensors as they are.
        """
        moved = [self._move(a) for a in arguments]
        with poisoned():
            if self.kind == "interpreter":
                result = operator.default.redispatch(_CUDA, *moved)
            else:
                result = operator(*moved)
        return [r.cpu() for r in result] if isinstance(result, (list, tuple)) else result.cpu()

    def _move(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return on(self.name, argument)
        if isinstance(argument, (list, tuple)):
            return [self._move(a) for a in argument]
        return argument


def make(kind: str, rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """An operand ``[rows, columns]`` of ``gpu_check``'s kinds, or ``hard``."""
    if kind == "hard":
        return hard_operand(rows, columns, dtype)
    return operand(kind, rows, columns, dtype, seed)


def hard_operand(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Gaussian numbers of many sizes with ties, zeros of both signs, denormals, inf and NaN."""
    x = torch.randn(rows, columns) * torch.exp2(4 * torch.randn(rows, columns))
    x = torch.where(torch.rand(rows, columns) < 0.3, 0.0, x)
    x[: rows // 4] = torch.randn(rows // 4, columns).mul(2).round()
    flat, largest = x.view(-1), float(torch.finfo(dtype).max)
    middle = flat.numel() // 2
    flat[middle : middle + 200] *= torch.finfo(dtype).tiny
    for offset, step, value in (
        (3, 101, -0.0), (5, 197, float("nan")), (11, 213, float("-inf")), (17, 103, largest),
        (18, 103, largest), (19, 309, -largest), (23, 205, float(torch.finfo(dtype).tiny)),
    ):  # fmt: skip
        flat[offset::step] = value
    return x.to(dtype)


def assert_same(mine: Tensor, expected: Tensor, what: str) -> None:
    """16-bit tensors: equal bits, or NaN on both sides."""
    text = difference(mine, expected)
    assert not text, f"{what}: {text}"


def assert_packed(mine: Tensor, expected: Tensor, rows: int, columns: int, layout: Layout) -> None:
    """Packed operands: values as in ``assert_same``, metadata and padding by every bit."""
    assert (mine.shape, mine.dtype) == (expected.shape, expected.dtype)
    (values, metadata), (wanted, indices) = (
        packing.split(p, rows, columns, layout) for p in (mine, expected)
    )
    assert_same(values.contiguous(), wanted.contiguous(), f"values in {layout}")
    assert torch.equal(metadata, indices), f"metadata in {layout}"
    assert_same(mine, expected, f"packed in {layout}")


def assert_compress(
    device: Target,
    x: Tensor,
    method: str,
    format: tuple[int, int],
    dims: Sequence[int],
    layout: Layout,
) -> None:
    """``nm::compress`` and ``nm::decompress`` of one operand against the oracle."""
    # Where the library packs otherwise, the operator repacks: no kernel would be checked.
    assert cusparselt.reads(layout, on(device.name, x)), f"{layout} is not what the library packs"
    nm, seed, streams = torch.ops.nm, seed_of(method), [3 + dim for dim in dims]
    results = device.run(nm.compress, x, seed, streams, list(dims), *format, method, str(layout))
    for dim, stream, packed in zip(dims, streams, results, strict=True):
        size = x.shape[1 - dim], x.shape[dim]
        expected = packing.compress(x, seed, stream, NMFormat(*format), dim, method, layout)
        assert_packed(packed, expected, *size, layout)
        dense = device.run(nm.decompress, packed, *size, str(layout))
        assert_same(dense, packing.unpack(expected, *size, layout), f"dim {dim}, unpacked")
