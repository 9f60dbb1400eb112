"""Mask kernels: what one is, its text, and its launch on any tensor (``device.prune``).

A kernel writes a pruned tensor or its keep mask, whatever the strides: what is read and what is
written are three groups of dimensions, each flattened into one index (``masks.blocks``). Dimensions
that lie in memory as one are one.
"""

from __future__ import annotations

import functools
import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmcompile.codegen import launch
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.loader import load
from nmcompile.codegen.mask_spec import STORAGE, MaskSpec
from nmcompile.codegen.printer import called_functions, print_kernel, template
from nmcompile.compressed.hardware import has_triton
from nmcompile.masks.blocks import layout_of_strides
from nmcompile.masks.formats import Method, NMFormat

_WARPS = 4


class Dim(NamedTuple):
    """A dimension: its size, and its strides in what is read and in what is written."""

    size: int
    read: int
    written: int


class Lie(NamedTuple):
    """How a tensor and its result lie: all that a launch depends on.

    Attributes:
        shape: of both.
        read, written: strides of the tensor, any, and of its result, as of ``empty_like``.
        dtype: of the tensor.
        mask: whether the result is the keep mask.
        device: of both.
    """

    shape: tuple[int, ...]
    read: tuple[int, ...]
    written: tuple[int, ...]
    dtype: torch.dtype
    mask: bool
    device: torch.device

    def dims(self, order: Sequence[int]) -> list[Dim]:
        """The dimensions in this order."""
        return [Dim(self.shape[d], self.read[d], self.written[d]) for d in order]

    @property
    def reach(self) -> tuple[int, int]:
        """The last offsets, in elements."""
        last = [n - 1 for n in self.shape]
        return _dot(last, self.read), _dot(last, self.written)


def lie_of(x: Tensor, y: Tensor) -> Lie:
    """How ``x`` and its result ``y`` lie."""
    mask = y.dtype == torch.bool
    return Lie(tuple(x.shape), x.stride(), y.stride(), x.dtype, mask, x.device)


@dataclass(frozen=True)
class MaskLaunch:
    """A kernel and what it is called with beside its tensors; ``constants`` are in its code."""

    spec: MaskSpec
    numbers: dict[str, int]
    constants: dict[str, Any]
    grid: tuple[int, int, int]
    warps: int = _WARPS


# -- the text ------------------------------------------------------------------------------------

_CONSTANTS = ["LANES", "WHOLE", "WIDE", "ISA"]
_GROUPS = {
    "runs": ("outer", "along"),
    "across": ("outer", "along", "inner"),
    "tiles": ("outer", "lines", "line"),
}


def parameters(spec: MaskSpec) -> list[str]:
    """The kernel's arguments before its constants: tensors, stream, each group's dimensions."""
    names = [*spec.inputs, "y", *(["seed", "stream0"] if spec.random else [])]
    names += ["C"] * _broadcasts(spec)
    for group, rank in zip(_GROUPS[spec.lie], spec.ranks, strict=True):
        names += [f"{group}{k}{part}" for part in ("", "_x", "_y") for k in range(rank)]
    return names


def _broadcasts(spec: MaskSpec) -> bool:
    """Whether an input is smaller than the operand, whose rows ``C`` tells."""
    given = spec.computed.inputs if spec.computed else ()
    return any(i.shape in ("per_row", "per_column") for i in given)


#: Where the element of an input lies, for that of the operand at ``at``.
_PLACES = {"full": "at", "per_column": "at % C", "per_row": "at // C", "scalar": "at * 0"}


@print_kernel.register
def _(spec: MaskSpec) -> str:
    groups = [
        (group, _flat(group, rank) if spec.lie != "tiles" or group == "outer" else _one(group))
        for group, rank in zip(_GROUPS[spec.lie], spec.ranks, strict=True)
    ]
    what = "the keep mask" if spec.mask else "the pruned values"
    patterns = transposable_patterns(spec.n, spec.m) if spec.lie == "tiles" else ()
    statements = spec.computed.statements if spec.computed else ()
    loads = {"as_bits", "load_bits"}
    if spec.computed:
        loads = {"float_bits", "load_float"} | ({"as_bits"} if spec.keeps_dense else set())
    return template("mask.py.jinja").render(
        spec=spec,
        what=f"{what} of {spec.n}:{spec.m} {spec.method} in {spec.dtype}",
        spec_lines=textwrap.wrap(spec.to_json(), 90, break_on_hyphens=False),
        kept=", ".join(str(place) for pattern in patterns for place in pattern),
        loads=sorted(loads),
        functions=called_functions(statements),
        places=_PLACES,
        value=spec.computed.operands[0].value if spec.computed else "",
        bytes=4 if spec.storage == "fp32" else 2,
        inputs=[*spec.inputs, *["C"] * _broadcasts(spec)],
        parameters=parameters(spec),
        constants=_CONSTANTS,
        # Else the streams 0, 1 and 16 would each be a kernel of their own.
        decoration='(do_not_specialize=["stream0"])' if spec.random else "",
        groups=groups,
        arguments=_arguments(spec),
    )


def _flat(group: str, rank: int) -> str:
    """Sizes, strides read and written, and the product of the sizes."""
    if rank == 0:
        return "(1,), (0,), (0,), 1"
    names = [[f"{group}{k}{part}" for k in range(rank)] for part in ("", "_x", "_y")]
    tuples = [f"({', '.join(some)}{',' if rank == 1 else ''})" for some in names]
    return f"{', '.join(tuples)}, {' * '.join(names[0])}"


def _one(group: str) -> str:
    return ", ".join(f"{group}0{part}" for part in ("", "_x", "_y"))


def _arguments(spec: MaskSpec) -> list[str]:
    single = str(spec.ranks[0] == 0)
    stored = [f'"{spec.storage}"', str(spec.mask), "LANES", single]
    if spec.lie == "tiles":
        count = len(transposable_patterns(spec.n, spec.m))
        chosen = ["KEPT", *map(str, (count, spec.n, spec.m, spec.swapped))]
        return [*chosen, *stored, "WHOLE", "WIDE", "ISA"]
    random = ["seed", "stream0"] if spec.random else ["0", "0"]
    chosen = [*random, f'"{spec.method}"', str(spec.n), str(spec.m)]
    if spec.lie == "runs":
        return [*chosen, str(_padded(spec.m)), *stored, "WHOLE", "WIDE", "ISA"]
    return [*chosen, *stored, "WIDE", "ISA"]


def transposable_patterns(n: int, m: int) -> tuple[tuple[int, ...], ...]:
    """The m x m patterns with n kept in every row and column: the numbers of the kept elements.

    Element ``r * m + c`` is that of row r and column c. In the order in which equals are told
    apart: that of the kept columns, row by row.
    """
    rows = itertools.product(itertools.combinations(range(m), n), repeat=m)
    patterns = [tuple(r * m + c for r, row in enumerate(p) for c in row) for p in rows]
    columns = [[sum(k % m == c for k in p) for c in range(m)] for p in patterns]
    return tuple(p for p, kept in zip(patterns, columns, strict=True) if kept == [n] * m)


def _padded(m: int) -> int:
    return 1 << (m - 1).bit_length()


# -- the launch ----------------------------------------------------------------------------------


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether there are kernels for operands of this type: for float64 there are none."""
    return has_triton() and dtype in STORAGE


@functools.lru_cache(maxsize=1024)
def launch_of(lie: Lie, form: NMFormat, dims: tuple[int, ...], method: str) -> MaskLaunch:
    """How the mask of a tensor with at least one element is written.

    Args:
        lie: the tensor and its result.
        form, dims, method: as of ``nm::prune``.
    """
    dims = tuple(d % len(lie.shape) for d in dims)
    if method == Method.TRANSPOSABLE and form.n < form.m:
        return _tiles(lie, form, dims)
    if method == Method.TRANSPOSABLE:
        method, dims = str(Method.MSE), dims[-1:]  # all of it is kept
    layout = layout_of_strides(lie.shape, lie.written, dims, form.m, False)
    outer, along, inner = _groups(lie.dims(layout.perm), layout.outer, layout.size)
    if outer and len(along) == 1 and along[0].size % form.m == 0:
        # No block crosses the rows: where they lie one behind the other they are one long row.
        together = _merged([outer[-1], along[0]])
        if len(together) == 1:
            outer, along = outer[:-1], together
    size, rows, columns = (math.prod(d.size for d in group) for group in (along, outer, inner))
    lanes = rows * -(-size // form.m) * columns
    groups = [outer, along or [Dim(1, 0, 0)], *([inner] if inner else [])]
    whole = size % form.m == 0 and form.m == _padded(form.m)
    spec = _spec(lie, form, method, "across" if inner else "runs", groups)
    return _launch(lie, spec, groups, lanes, whole)


def _tiles(lie: Lie, form: NMFormat, dims: tuple[int, ...]) -> MaskLaunch:
    layout = layout_of_strides(lie.shape, lie.written, dims, form.m, True)
    *others, rows, columns = lie.dims(layout.perm)
    swapped = rows.size > 1 and columns.size > 1 and rows.written < columns.written
    lines, line = (columns, rows) if swapped else (rows, columns)
    outer = _merged(others)
    if outer and lines.size % form.m == 0 and len(together := _merged([outer[-1], lines])) == 1:
        outer, lines = outer[:-1], together[0]
    bands, across = -(-lines.size // form.m), -(-line.size // form.m)
    lanes = math.prod(d.size for d in outer) * bands * across
    groups = [outer, [lines], [line]]
    spec = _spec(lie, form, str(Method.TRANSPOSABLE), "tiles", groups, swapped)
    return _launch(lie, spec, groups, lanes, whole=line.size % form.m == 0)


def _spec(
    lie: Lie, form: NMFormat, method: str, how: Any, groups: list[list[Dim]], swapped: bool = False
) -> MaskSpec:
    return MaskSpec(
        n=form.n,
        m=form.m,
        method=method,
        dtype=str(lie.dtype).removeprefix("torch."),
        mask=lie.mask,
        lie=how,
        ranks=tuple(map(len, groups)),
        swapped=swapped,
    )


def _launch(
    lie: Lie, spec: MaskSpec, groups: list[list[Dim]], lanes: int, whole: bool
) -> MaskLaunch:
    numbers: dict[str, int] = {}
    for name, group in zip(_GROUPS[spec.lie], groups, strict=True):
        for k, dim in enumerate(group):
            numbers |= zip((f"{name}{k}{part}" for part in ("", "_x", "_y")), dim, strict=True)
    per_program = lanes_of(spec)
    grid = -(-lanes // per_program)
    wide = max(*lie.reach, grid * per_program * _padded(spec.m)) >= 2**31
    isa = launch.isa(lie.device)
    constants = {"LANES": per_program, "WHOLE": whole, "WIDE": wide, "ISA": isa}
    return MaskLaunch(spec, numbers, constants, (grid, 1, 1))


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def lanes_of(spec: MaskSpec) -> int:
    """Blocks or tiles of a program: enough for accesses of 16 bytes where they do not spill."""
    double = 1 if spec.storage == "fp32" else 2
    if spec.lie == "tiles":
        return 128 * double * (4 // spec.m)
    if spec.method == Method.APPROX_MVUE:
        return 256
    if spec.lie == "across" and spec.m <= 8:
        return 512 * double if spec.m <= 4 else 512
    return max(128, min(512, 2048 // _padded(spec.m)))


def _groups(dims: list[Dim], outer: int, size: int) -> list[list[Dim]]:
    """Dimensions before, along and behind the blocks, from the products of the first two."""
    dims, groups = [d for d in dims if d.size > 1], []
    for product in (outer, size):
        count = next(
            k for k in range(len(dims) + 1) if math.prod(d.size for d in dims[:k]) == product
        )
        groups.append(_merged(dims[:count]))
        dims = dims[count:]
    return [*groups, _merged(dims)]


def _merged(dims: Sequence[Dim]) -> list[Dim]:
    """The same dimensions, with those that lie as one made one."""
    found: list[Dim] = []
    for dim in dims:
        last = found[-1] if found else None
        behind = (dim.size * dim.read, dim.size * dim.written)
        if dim.size == 1:
            continue
        if last and last[1:] == behind:
            found[-1] = Dim(last.size * dim.size, dim.read, dim.written)
        else:
            found.append(dim)
    return found


def tensors(spec: MaskSpec, inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
    """The kernel's pointers by name: what it reads, the result ``y`` and, if kept, ``dense``."""
    names = spec.inputs[: len(inputs)]
    return dict(zip([*names, "y", *spec.inputs[len(inputs) :]], [*inputs, *results], strict=True))


def random_arguments(spec: MaskSpec, seed: Any, stream: int) -> dict[str, Any]:
    """The kernel's seed and stream by name, where it draws random numbers."""
    return {"seed": seed, "stream0": stream} if spec.random else {}


def computing(found: MaskLaunch, computed: KernelSpec, columns: int) -> MaskLaunch:
    """The same launch of a kernel that computes its operand ``[R, columns]``."""
    spec = found.spec.model_copy(update={"computed": computed})
    numbers = found.numbers | ({"C": columns} if _broadcasts(spec) else {})
    return replace(found, spec=spec, numbers=numbers)


def run(how: MaskLaunch, tensors: dict[str, Tensor], seed: Tensor | None, stream: int) -> None:
    """Launch the kernel on its tensors, by name: what it reads, what it writes."""
    drawn = random_arguments(how.spec, seed, stream)
    with launch.on_device(tensors["y"].device):
        kernel = load(how.spec)[how.grid]
        kernel(**tensors, **drawn, **how.numbers, **how.constants, num_warps=how.warps)
