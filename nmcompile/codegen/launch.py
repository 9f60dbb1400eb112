"""Run a generated kernel on tensors: its arguments, its grid, its results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nmcompile.codegen.kernel_spec import STORAGE, KernelSpec
from nmcompile.codegen.loader import load
from nmcompile.compressed.hardware import has_triton
from nmcompile.masks.formats import Method


def interpreted() -> bool:
    """Whether this process runs Triton kernels in the interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def is_generated(x: Tensor, method: str) -> bool:
    """Whether a compress kernel is generated for operands like ``x``, 2-D."""
    return has_triton() and x.dtype in STORAGE and method in (Method.MSE, Method.MVUE)


def result_shapes(spec: KernelSpec, rows: int, columns: int) -> list[tuple[int, int]]:
    """Shapes of the results: one packed tensor for each of ``spec.dims``, then the dense one."""
    dtype = getattr(torch, spec.dtype)
    sizes = ((rows, columns) if dim == 1 else (columns, rows) for dim in spec.dims)
    packed = [spec.layout.packed_shape(*size, dtype) for size in sizes]
    return packed + ([(rows, columns)] if spec.keep_dense else [])


def operand_shape(spec: KernelSpec, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """``(R, C)``, from the first input that is a whole operand."""
    full = next(x for i, x in zip(spec.inputs, inputs, strict=True) if i.shape == "full")
    rows, columns = full.shape
    return rows, columns


def constants(
    spec: KernelSpec, rows: int, columns: int, strides: Sequence[int], addresses: Sequence[int]
) -> tuple[dict[str, Any], tuple[int, int, int], int]:
    """The kernel's constants, its grid and its number of warps.

    Args:
        spec: the kernel.
        rows, columns: of the operand.
        strides: row strides of the inputs and results ``[R, C]``, in elements.
        addresses: of every tensor that is read or written (0 where it is known to be aligned).
    """
    from nmcompile.codegen.device import host

    tile = host.tile(spec.orientations, spec.method)
    fit = host.fit_of(rows, columns, strides, addresses, tile.rows, tile.columns)
    isa = 0 if interpreted() else _capability()
    values = {"ROWS": tile.rows, "COLUMNS": tile.columns, "FIT": fit, "ISA": isa}
    return values, host.launch_grid(rows, columns, tile.rows, tile.columns), tile.warps


def run(
    spec: KernelSpec,
    inputs: Sequence[Tensor],
    seed: Tensor | None,
    streams: Sequence[int],
) -> list[Tensor]:
    """Launch the kernel; returns what ``result_shapes`` lists.

    Args:
        spec: the kernel.
        inputs: the tensors of ``spec.inputs``: ``[R, C]`` with rows of any stride, or contiguous.
        seed, streams: as of ``nm::compress``.
    """
    rows, columns = operand_shape(spec, inputs)
    options: dict[str, Any] = {
        "dtype": getattr(torch, spec.dtype),
        "device": inputs[0].device,
    }
    results = [torch.empty(shape, **options) for shape in result_shapes(spec, rows, columns)]
    if rows * columns == 0:
        return results
    strides = row_strides(spec, inputs, columns)
    tensors = tensor_arguments(spec, inputs, results, seed)
    numbers = number_arguments(spec, rows, columns, strides, streams)
    addresses = [x.data_ptr() for x in (*inputs, *results)]
    values, grid, warps = constants(spec, rows, columns, list(strides.values()), addresses)
    load(spec)[grid](**tensors, **numbers, **values, num_warps=warps)
    return results


def result_names(spec: KernelSpec) -> list[str]:
    """The kernel's names of what ``result_shapes`` lists."""
    return [*(f"packed{k}" for k in range(len(spec.dims))), *["dense"] * spec.keep_dense]


def tensor_arguments(
    spec: KernelSpec, inputs: Sequence[Any], results: Sequence[Any], seed: Any
) -> dict[str, Any]:
    """The kernel's pointers by name, from tensors or from the nodes of a graph."""
    tensors = {i.name: x for i, x in zip(spec.inputs, inputs, strict=True)}
    tensors |= zip(result_names(spec), results, strict=True)
    return tensors | ({"seed": seed} if spec.method == "mvue" else {})


def number_arguments(
    spec: KernelSpec, rows: int, columns: int, strides: dict[str, int], streams: Sequence[int]
) -> dict[str, int]:
    """The kernel's sizes, strides and streams by name."""
    numbers = {"R": rows, "C": columns, **strides}
    if spec.method == "mvue":
        numbers |= {f"stream{k}": stream for k, stream in enumerate(streams)}
    return numbers


def row_strides(spec: KernelSpec, inputs: Sequence[Tensor], columns: int) -> dict[str, int]:
    """The kernel's stride arguments, in elements."""
    given = zip(spec.inputs, inputs, strict=True)
    full = {i.name: x for i, x in given if i.shape == "full"}
    strides = {f"{name}_stride": int(x.stride(0)) for name, x in full.items()}
    return strides | ({"dense_stride": columns} if spec.keep_dense else {})


def _capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
