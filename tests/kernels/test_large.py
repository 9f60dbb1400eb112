"""Operands of more tiles than an axis of the grid takes, or more elements than 32 bits count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmcompile.codegen import launch, loader
from nmcompile.codegen.kernel_spec import KernelSpec, identity
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat
from tests.kernels.target import ORIENTATIONS, Target, assert_packed


def start(
    kind: KernelSpec, x: Tensor, results: list[Tensor], grid: Any, values: dict[str, Any]
) -> None:
    """One launch of a kernel without a prologue, in a grid of one's own."""
    tensors = launch.tensor_arguments(kind, [x], results, None)
    numbers = {"R": x.shape[0], "C": x.shape[1], "x_stride": x.stride(0)}
    loader.load(kind)[grid](**tensors, **numbers, **values)


@pytest.mark.on("interpreter", "cuda")
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_programs_beyond_the_last_tile_write_nothing(
    device: Target, orientation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three row tiles on two axes of two: the fourth program has nothing to do."""
    from nmcompile.codegen.device import host

    monkeypatch.setattr(host, "_AXIS_LIMIT", 2)
    dims = ORIENTATIONS[orientation]
    kind = identity(torch.float16, dims, 2, 4, "mse", "row_major")
    rows, columns = {"rows": 192, "columns": 768, "both": 384}[orientation], 256
    x = torch.randn(rows, columns).half()
    given = x.to(device.name)
    values, grid, _ = launch.constants(kind, rows, columns, [columns], [0], given.device)
    assert grid[1:] == (2, 2)
    assert math.prod(grid) * values["ROWS"] * values["COLUMNS"] > rows * columns
    guarded, results = [], []
    for shape in launch.result_shapes(kind, rows, columns):
        whole = torch.full((3, *shape), 7.0, dtype=x.dtype, device=device.name)
        guarded.append(whole)
        results.append(whole[1])
    start(kind, given, results, grid, values)
    for whole, dim in zip(guarded, dims, strict=True):
        assert (whole[[0, 2]] == 7).all()
        size = (rows, columns) if dim == 1 else (columns, rows)
        form = NMFormat(2, 4)
        expected = packing.compress(x, None, 0, form, dim, "mse", Layout.ROW_MAJOR)
        assert_packed(whole[1].cpu(), expected, *size, Layout.ROW_MAJOR)


def sparse_file(path: Path, shape: tuple[int, int]) -> Tensor:
    """Zeros that take no memory where nothing is written."""
    size = 2 * math.prod(shape)
    storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=size)
    return torch.empty(0, dtype=torch.float16).set_(storage, 0, shape)  # type: ignore[call-overload]


@pytest.mark.on("interpreter")
def test_rows_far_apart(device: Target, tmp_path: Path) -> None:
    x = sparse_file(tmp_path / "x", (64, 2**28))[:, :256]
    x.copy_(torch.randn(64, 256))
    mine = device.run(torch.ops.nm.compress, x, None, [0], [1], 2, 4, "mse", "row_major")[0]
    form = NMFormat(2, 4)
    expected = packing.compress(x.contiguous(), None, 0, form, 1, "mse", Layout.ROW_MAJOR)
    assert_packed(mine, expected, 64, 256, Layout.ROW_MAJOR)


@pytest.mark.on("interpreter")
def test_long_rows(device: Target, tmp_path: Path) -> None:
    """The first program of many: its rows of values begin further apart than 31 bits count."""
    rows, columns = 64, 2**27 + 2**23
    kind = identity(torch.float16, (1,), 2, 4, "mse", "row_major")
    x = sparse_file(tmp_path / "x", (rows, columns))
    x[:, :256] = torch.randn(rows, 256)
    ((packed_rows, packed_columns),) = launch.result_shapes(kind, rows, columns)
    packed = sparse_file(tmp_path / "packed", (packed_rows, packed_columns))
    values, grid, _ = launch.constants(kind, rows, columns, [columns], [0], x.device)
    assert grid[0] > 1
    start(kind, x, [packed], (1, 1, 1), values)
    form = NMFormat(2, 4)
    first = packing.compress(x[:, :256].contiguous(), None, 0, form, 1, "mse", Layout.ROW_MAJOR)
    wanted, indices = packing.split(first, rows, 256, Layout.ROW_MAJOR)
    flat = packed.view(-1)
    assert torch.equal(flat[: rows * columns // 2].view(rows, -1)[:, :128], wanted)
    metadata = flat[rows * columns // 2 :].view(torch.uint8).view(rows, -1)
    assert torch.equal(metadata[:, :32].flatten(), indices.flatten().view(torch.uint8))
