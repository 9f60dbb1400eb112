"""Section ``tiles``: what a program of a compress kernel should own, by measurement.

Every candidate of ``codegen.device.host.tile`` compresses Llama's X or dY, as it is or computed
from what a SwiGLU layer reads, over the time in which a copy moves its bytes. What machine code
alone says is a lower bound: it does not see that a long program is fetched again and again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.cases.inputs import STREAMS
from benchmarks.gpu_check.cases.library import noted
from benchmarks.gpu_check.cases.products import DTYPE, bandwidth
from benchmarks.gpu_check.device import Call
from benchmarks.gpu_check.events import Case, Session
from benchmarks.gpu_check.targets import FLOOR
from benchmarks.static_check.prologues import Prologue
from nmcompile.codegen import launch
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import Method

aten = torch.ops.aten


#: By ``KernelSpec.orientations``: rows and columns of elements that a program owns, its warps.
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
        (64, 64, 4),
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
        (128, 64, 4),
        (64, 64, 4),
        (64, 64, 2),
        (128, 128, 8),
        (64, 128, 8),
    ),
}
DIMS = {"rows": (1,), "columns": (0,), "both": (1, 0)}
SIZES = 16384, 14336

_SIGMOID = (
    ("neg_0", aten.neg.default, "gate"),
    ("exp_0", aten.exp.default, "neg_0"),
    ("add_0", aten.add.Tensor, "exp_0", 1),
)
#: The gradients of silu(gate) * up, dy given, as PyTorch decomposes them.
PROLOGUES = {
    "copy": Prologue(),
    "dup": Prologue(
        ("dy", "gate"),
        (
            *_SIGMOID,
            ("div_0", aten.div.Tensor, "gate", "add_0"),
            ("mul_0", aten.mul.Tensor, "dy", "div_0"),
        ),
    ),
    "dgate": Prologue(
        ("dy", "gate", "up"),
        (
            *_SIGMOID,
            ("mul_0", aten.mul.Tensor, "dy", "up"),
            ("reciprocal_0", aten.reciprocal.default, "add_0"),
            ("mul_1", aten.mul.Tensor, "mul_0", "reciprocal_0"),
            ("sub_0", aten.sub.Tensor, 1, "reciprocal_0"),
            ("mul_2", aten.mul.Tensor, "gate", "sub_0"),
            ("add_1", aten.add.Tensor, "mul_2", 1),
            ("mul_3", aten.mul.Tensor, "mul_1", "add_1"),
        ),
    ),
}
#: Both, of one kernel: a program has one of them, and the next one finds in the cache what it read.
_DUP, _DGATE = PROLOGUES["dup"].calls, PROLOGUES["dgate"].calls
PAIR = "dup, dgate"
PROLOGUES[PAIR] = Prologue(
    PROLOGUES["dgate"].inputs, (*_DUP[:-1], ("dup", *_DUP[-1][1:]), *_DGATE[len(_SIGMOID) :])
)
#: Method, orientation and prologue.
KINDS = (
    ("mvue", "columns", "dgate"),
    ("mvue", "both", PAIR),
    ("mvue", "both", "copy"),
    ("mvue", "both", "dup"),
    ("mvue", "both", "dgate"),
    ("mse", "rows", "copy"),
    ("mse", "rows", "dup"),
    ("mvue", "rows", "copy"),
    ("mse", "columns", "copy"),
    ("mvue", "columns", "copy"),
)


def cases(rehearse: bool) -> list[Case]:
    """A case for each kind of kernel."""
    sizes = (128, 256) if rehearse else SIZES
    return [
        Case("tiles", " ".join(kind), partial(sweep, kind=kind, sizes=sizes), 2, 60)
        for kind in KINDS
    ]


def sweep(session: Session, kind: tuple[str, str, str], sizes: tuple[int, int]) -> None:
    """Time of every candidate; of its kernel, registers and bytes spilled."""
    device, (rows, columns), (method, how, prologue) = session.device, sizes, kind
    spec = _spec(method, how, PROLOGUES[prologue], str(device.layout))
    count = device.input_sets(2 * rows * columns * len(spec.inputs))
    make = partial(torch.randn, rows, columns, device=device.name, dtype=DTYPE)
    sets = [[make() for _ in spec.inputs] for _ in range(count)]
    calls: dict[str, Call] = {}
    candidates = CANDIDATES[how][: 2 if device.rehearsal else None]
    for candidate in candidates:
        name = "{}x{}/{}".format(*candidate)
        with noted(session, name):
            call = _call(session, spec, sets, candidate)
            call(0)
            device.synchronize()
            calls[name] = call
    moved = (2.0 * len(spec.inputs) + 1.125 * len(spec.dims)) * rows * columns
    floor = moved / bandwidth(session)
    for name, times in device.time(calls, rounds=2).items():
        place = {"x": f"{rows}x{columns}", "config": f"{' '.join(kind)} {name}"}
        session.row("compress", "time (us)", [t * 1e6 for t in times], **place)
        session.row("compress", FLOOR, [t / floor for t in times], **place)


def _spec(method: str, how: str, prologue: Prologue, layout: str) -> KernelSpec:
    dtype = str(DTYPE).removeprefix("torch.")
    operands = [prologue.operand(DIMS[how])]
    if prologue is PROLOGUES[PAIR]:
        operands.insert(0, operands[0].model_copy(update={"value": "dup"}))
    return KernelSpec(
        inputs=prologue.inputs_of(dtype),
        statements=prologue.statements,
        operands=tuple(operands),
        n=2,
        m=4,
        method=Method(method),
        layout=Layout(layout),
        dtype=dtype,
    )


def _call(
    session: Session, spec: KernelSpec, sets: list[list[Tensor]], candidate: tuple[int, int, int]
) -> Call:
    """The kernel of ``spec`` with another tile than the package's."""
    from nmcompile.codegen.device import host

    x, count, tile = sets[0][0], len(sets), host.Tile(*candidate)
    seed, streams = torch.tensor([12345], device=x.device), [STREAMS[d] for d in spec.dims]
    if session.device.rehearsal:  # no kernel runs there
        about = seed, streams, list(spec.dims), 2, 4, str(spec.method), str(spec.layout)
        return lambda i: torch.ops.nm.compress(sets[i % count][0], *about)
    results = [x.new_empty(shape) for shape in launch.result_shapes(spec, *x.shape)]
    strides = launch.row_strides(spec, [x.stride()] * len(spec.inputs))
    values = {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "FIT": "full",
        "ISA": launch.isa(x.device),
    }
    fixed = {"R": x.shape[0], "C": x.shape[1], **strides, **values}
    fixed |= launch.stream_arguments(spec, streams)
    size = (*x.shape, tile.rows, tile.columns)
    kernel = launch.load(spec)[host.launch_grid(*size, operands=len(spec.operands))]

    def run(i: int) -> Any:
        tensors = launch.tensor_arguments(spec, sets[i % count], results, seed)
        return kernel(**tensors, **fixed, num_warps=tile.warps)

    compiled = run(0)
    machine_code = {"registers": compiled.n_regs, "spilled bytes": compiled.n_spills}
    session.note(f"{tile}: machine code", machine_code)
    return run
