"""Section ``tiles``: what a program of a compress kernel should own, by measurement.

``codegen.device.host.tile`` was chosen from machine code alone. Every candidate compresses Llama's
X or dY, over the time in which a copy moves its bytes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_check.cases.inputs import STREAMS
from benchmarks.gpu_check.cases.library import noted
from benchmarks.gpu_check.cases.products import DTYPE, bandwidth
from benchmarks.gpu_check.device import Call
from benchmarks.gpu_check.events import Case, Session
from benchmarks.gpu_check.targets import FLOOR
from nmcompile.codegen import launch
from nmcompile.codegen.kernel_spec import KernelSpec, identity


class Candidate(NamedTuple):
    """Elements that a program owns, and its warps: as ``host.Tile``."""

    rows: int
    columns: int
    warps: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}/{self.warps}"


#: By ``KernelSpec.orientations``.
CANDIDATES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "rows": (
        (64, 256, 8),
        (64, 128, 4),
        (64, 256, 4),
        (64, 512, 8),
        (128, 256, 8),
        (64, 128, 8),
        (128, 128, 8),
    ),
    "columns": (
        (256, 64, 4),
        (128, 64, 4),
        (128, 128, 4),
        (256, 64, 8),
        (256, 128, 8),
        (512, 64, 8),
        (128, 128, 8),
    ),
    "both": (
        (128, 128, 4),
        (64, 128, 4),
        (64, 256, 4),
        (128, 64, 4),
        (128, 128, 8),
        (64, 256, 8),
        (128, 256, 8),
    ),
}
DIMS = {"rows": (1,), "columns": (0,), "both": (1, 0)}
SIZES = 16384, 14336


def cases(rehearse: bool) -> list[Case]:
    """A case for each method and orientation."""
    rows, columns = (128, 256) if rehearse else SIZES
    return [
        Case("tiles", f"{m} {o}", partial(sweep, method=m, how=o, sizes=(rows, columns)), 3, 60)
        for o in DIMS
        for m in ("mse", "mvue")
    ]


def sweep(session: Session, method: str, how: str, sizes: tuple[int, int]) -> None:
    """Time of every candidate; of its kernel, registers and bytes spilled."""
    device, (rows, columns) = session.device, sizes
    count = device.input_sets(2 * rows * columns)
    sets = [torch.randn(rows, columns, device=device.name, dtype=DTYPE) for _ in range(count)]
    spec = identity(DTYPE, DIMS[how], 2, 4, method, str(device.layout))
    calls: dict[str, Call] = {}
    candidates = CANDIDATES[how][: 2 if device.rehearsal else None]
    for candidate in map(Candidate._make, candidates):
        with noted(session, str(candidate)):
            call = _call(session, spec, sets, candidate)
            call(0)
            device.synchronize()
            calls[str(candidate)] = call
    floor = (2.0 + 1.125 * len(spec.dims)) * rows * columns / bandwidth(session)
    for name, times in device.time(calls, rounds=2).items():
        place = {"x": f"{rows}x{columns}", "config": f"{method} {how} {name}"}
        session.row("compress", "time (us)", [t * 1e6 for t in times], **place)
        session.row("compress", FLOOR, [t / floor for t in times], **place)


def _call(session: Session, spec: KernelSpec, sets: list[Tensor], tile: Candidate) -> Call:
    """The kernel of ``spec`` with another tile than the package's."""
    from nmcompile.codegen.device import host

    x, seed = sets[0], torch.tensor([12345], device=sets[0].device)
    shapes = launch.result_shapes(spec, *x.shape)
    results = [torch.empty(s, device=x.device, dtype=x.dtype) for s in shapes]
    numbers = {"R": x.shape[0], "C": x.shape[1], **launch.row_strides(spec, [x.stride()])}
    values = {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "FIT": "full",
        "ISA": launch.isa(x.device),
    }
    fixed = numbers | launch.stream_arguments(spec, [STREAMS[d] for d in spec.dims]) | values
    grid = host.launch_grid(*x.shape, tile.rows, tile.columns)
    if session.device.rehearsal:  # no kernel runs there
        dims = list(spec.dims)
        about = [STREAMS[d] for d in dims], dims, 2, 4, spec.method, str(spec.layout)
        return lambda i: torch.ops.nm.compress(sets[i % len(sets)], seed, *about)
    kernel = launch.load(spec)[grid]

    def run(i: int) -> Any:
        tensors = launch.tensor_arguments(spec, [sets[i % len(sets)]], results, seed)
        return kernel(**tensors, **fixed, num_warps=tile.warps)

    compiled = run(0)
    about_kernel = {"registers": compiled.n_regs, "spilled bytes": compiled.n_spills}
    session.note(f"{tile}: machine code", about_kernel)
    return run
