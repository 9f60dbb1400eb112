"""Run a generated kernel on tensors: its arguments, its grid, its results."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nmcompile.codegen.kernel_spec import PACKED, STORAGE, KernelSpec
from nmcompile.codegen.loader import load
from nmcompile.codegen.printer import alike, parameters
from nmcompile.compressed import cusparselt
from nmcompile.compressed.hardware import has_triton
from nmcompile.masks.formats import Method


def interpreted() -> bool:
    """Whether this process runs Triton kernels in the interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def is_generated(x: Tensor, method: str) -> bool:
    """Whether a compress kernel is generated for operands like ``x``, 2-D."""
    return has_triton() and x.dtype in STORAGE and method in (Method.MSE, Method.MVUE)


def result_shapes(spec: KernelSpec, rows: int, columns: int) -> list[tuple[int, int]]:
    """Shapes of the results: packed for each of ``spec.dims`` and ``spec.alike``, then dense."""
    dtype = getattr(torch, spec.dtype)
    sizes = ((rows, columns) if dim == 1 else (columns, rows) for dim in spec.dims)
    packed = [spec.layout.packed_shape(*size, dtype) for size in sizes]
    packed += [spec.layout.packed_shape(rows, columns, dtype) for _ in spec.alike]
    return packed + [(rows, columns)] * spec.dense_results


def operand_shape(spec: KernelSpec, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """``(R, C)``, from the first input that is a whole operand, or a packed one without padding."""
    return _operand_shape(spec, [x.shape for x in inputs])


def _operand_shape(spec: KernelSpec, shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    by_shape = {i.shape: shape for i, shape in zip(spec.inputs, shapes, strict=True)}
    if "full" in by_shape:
        rows, columns = by_shape["full"]
        return rows, columns
    rows, columns = next(by_shape[shape] for shape in PACKED if shape in by_shape)
    return rows, columns * 16 // 9  # a value for two elements, and one of metadata for sixteen


def constants(
    spec: KernelSpec,
    rows: int,
    columns: int,
    strides: Sequence[int],
    addresses: Sequence[int],
    device: torch.device,
) -> tuple[dict[str, Any], tuple[int, int, int], int]:
    """The kernel's constants, its grid and its number of warps.

    Args:
        spec: the kernel.
        rows, columns: of the operand.
        strides: row strides of the inputs and results ``[R, C]``, in elements.
        addresses: of every tensor that is read or written (0 where it is known to be aligned).
        device: where it runs.
    """
    from nmcompile.codegen.device import host

    kind = spec.orientations, spec.method, bool(spec.statements)
    tile = host.tile(*kind, spec.crowded)
    fit = host.fit_of(rows, columns, strides, addresses, tile.rows, tile.columns)
    if fit == "ragged":
        tile = host.tile(*kind, small=True)
    grid = host.launch_grid(rows, columns, tile.rows, tile.columns, operands=len(spec.operands))
    values = {"ROWS": tile.rows, "COLUMNS": tile.columns, "FIT": fit, "ISA": isa(device)}
    return values, grid, tile.warps


def run(
    spec: KernelSpec,
    inputs: Sequence[Tensor],
    seed: Tensor | None,
    streams: Sequence[int],
) -> list[Tensor]:
    """Launch the kernel on its inputs' device; returns what ``result_shapes`` lists.

    Args:
        spec: the kernel.
        inputs: the tensors of ``spec.inputs``: ``[R, C]`` with rows of any stride, or contiguous.
        seed, streams: as of ``nm::compress``.
    """
    first = inputs[0]
    for i, x in zip(spec.inputs, inputs, strict=True):
        if i.layout is not None:
            cusparselt.check_readable(x, i.layout)
    alike = tuple((x.shape, x.stride(), x.data_ptr() % 16) for x in inputs)
    seed_at = None if seed is None else seed.data_ptr() % 16
    prepared = _prepare(spec, first.device, alike, seed_at, all(map(_is_int32, streams)))
    results = [first.new_empty(shape, dtype=prepared.dtype) for shape in prepared.shapes]
    if prepared.numbers:
        arguments = tensor_arguments(spec, inputs, results, seed) | prepared.numbers
        arguments.update(stream_arguments(spec, streams))
        with on_device(first.device):
            prepared.launch(arguments)
    return results


@dataclass
class _Prepared:
    """What all launches of one kernel on tensors that lie alike have in common.

    ``numbers`` are the arguments that are neither tensors nor streams, none for an empty operand.
    """

    spec: KernelSpec
    dtype: torch.dtype
    shapes: list[tuple[int, int]]
    numbers: dict[str, Any] = field(default_factory=dict)
    grid: tuple[int, int, int] = (0, 0, 0)
    warps: int = 0
    order: list[str] = field(default_factory=list)
    compiled: Any = None

    def launch(self, arguments: dict[str, Any]) -> None:
        """Run the kernel, from the second time on without asking Triton which one it is."""
        if self.compiled is None:
            kernel = load(self.spec)[self.grid]
            self.compiled = kernel(**arguments, num_warps=self.warps)
        else:
            self.compiled[self.grid](*(arguments[name] for name in self.order))


@functools.lru_cache(maxsize=1024)
def _prepare(
    spec: KernelSpec,
    device: torch.device,
    alike: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...],
    seed_at: int | None,
    narrow: bool,
) -> _Prepared:
    """The launch of a kernel on inputs of these shapes, strides and addresses (modulo 16).

    Whatever else Triton makes kernels of their own for is a key too: where the seed lies, and
    whether the streams are 32-bit numbers.
    """
    rows, columns = _operand_shape(spec, [shape for shape, _, _ in alike])
    dtype = getattr(torch, spec.dtype)
    prepared = _Prepared(spec, dtype, result_shapes(spec, rows, columns))
    if rows * columns:
        strides = row_strides(spec, [stride for _, stride, _ in alike])
        places = [place for _, _, place in alike]
        values, prepared.grid, prepared.warps = constants(
            spec, rows, columns, list(strides.values()), places, device
        )
        prepared.numbers = {"R": rows, "C": columns, **strides, **values}
        prepared.order = [*parameters(spec), *values]
    return prepared


def _is_int32(number: int) -> bool:
    return -(2**31) <= number < 2**31


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which kernels are launched there: Triton launches on the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def result_names(spec: KernelSpec) -> list[str]:
    """The kernel's names of what ``result_shapes`` lists."""
    packed = [f"packed{k}" for k in range(len(spec.dims))] + alike(spec)
    return packed + [f"dense{k}" for k, o in enumerate(spec.operands) if o.keep_dense]


def tensor_arguments(
    spec: KernelSpec, inputs: Sequence[Any], results: Sequence[Any], seed: Any
) -> dict[str, Any]:
    """The kernel's pointers by name, from tensors or from the nodes of a graph."""
    tensors = {i.name: x for i, x in zip(spec.inputs, inputs, strict=True)}
    tensors |= zip(result_names(spec), results, strict=True)
    return tensors | ({"seed": seed} if spec.method == "mvue" else {})


def stream_arguments(spec: KernelSpec, streams: Sequence[int]) -> dict[str, int]:
    """The kernel's streams by name; none for a kernel that draws nothing."""
    return {f"stream{k}": s for k, s in enumerate(streams)} if spec.method == "mvue" else {}


def row_strides(spec: KernelSpec, strides: Sequence[Sequence[int]]) -> dict[str, int]:
    """The kernel's stride arguments, in elements, from the strides of its inputs."""
    given = zip(spec.inputs, strides, strict=True)
    return {f"{i.name}_stride": int(stride[0]) for i, stride in given if i.shape == "full"}


def isa(device: torch.device) -> int:
    """What inline PTX may use there, as ``codegen.device`` takes it."""
    return 0 if interpreted() or device.type != "cuda" else _capability(device)


@functools.cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
