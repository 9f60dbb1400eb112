"""The sparse library's calls: host time (section ``host``), CUDA graph replay (``graphs``), and
orientations of operands and results (``products``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from benchmarks.gpu_check.cases.products import Layer, Shape
from benchmarks.gpu_check.events import Case, Session
from nmcompile.compressed import plans

SMALL = Shape(1024, 1024, 1024)  # the device is done before the host is
LARGE = (Shape(8192, 8192, 8192), Shape(16384, 4096, 14336))
REHEARSED = Shape(64, 64, 64), Shape(64, 128, 64)


def cases(rehearse: bool) -> list[Case]:
    """Of all three sections."""
    same = {"limit": 30, "seconds": 3}
    large = REHEARSED[1:] if rehearse else LARGE
    small = REHEARSED[0] if rehearse else SMALL
    found = [("host", "host time", host_time, small)]
    found += [("products", f"orientations {shape}", orientations, shape) for shape in large]
    found += [("graphs", f"replay {shape}", graphs, shape) for shape in (small, large[0])]
    return [Case(s, name, partial(run, shape=x), **same) for s, name, run, x in found]


@contextmanager
def noted(session: Session, name: str) -> Iterator[None]:
    """An alternative that does not work is a finding, not an error."""
    try:
        yield
    except Exception as error:
        if session.device.lost():
            raise
        session.note(name, f"{type(error).__name__}: {error}"[:500])


def library(session: Session, packed: Tensor, dense: Tensor, **options: object) -> Tensor:
    """``torch._cslt_sparse_mm``; in a rehearsal an imitation of it."""
    if not session.device.rehearsal:
        return torch._cslt_sparse_mm(packed, dense, **options)
    transposed = bool(options.get("transpose_result", False))
    rows = packed.shape[0]
    layout = str(session.device.layout)
    return torch.ops.nm.mm(packed, dense, rows, layout, None, transposed)


def host_time(session: Session, shape: Shape) -> None:
    """Microseconds of the host for one call, while the device is not waited for."""
    layer = Layer(shape, session.device)
    packed = layer.packed["fprop"]
    sets, layout = layer.sets, session.device.layout
    calls = {
        "torch.mm": layer.dense("fprop"),
        "nm.mm": layer.product("fprop"),
        "nm.compress": lambda i: layer.compress(layer.x[i % sets], [1], "mse"),
        "nm.compress both": lambda i: layer.compress(layer.x[i % sets], [1, 0], "mvue"),
    }
    if layout.by_cusparselt:
        operands = [(packed[i], layer.w[i].t()) for i in range(sets)]
        calls["_cslt_sparse_mm"] = lambda i: library(session, *operands[i % sets])
        if not session.device.rehearsal:
            calls["kept plan"] = lambda i: plans.kept_mm(*operands[i % sets])
            with noted(session, "kept plan"):
                same = [torch.equal(plans.kept_mm(*x), library(session, *x)) for x in operands * 2]
                session.check("kept plan: PyTorch's result, bit for bit", all(same), str(same))
    for provider, call in calls.items():
        with noted(session, provider):
            times = session.device.host_time(call)
            session.row(provider, "host time (us)", [t * 1e6 for t in times], x=str(shape))


def orientations(session: Session, shape: Shape) -> None:
    """The sparse operand as A; the dense one by rows or columns; the result as is or transposed.

    Also the roles swapped: W, not X, compressed, with the result transposed to Y.
    """
    layer, layout = Layer(shape, session.device), str(session.device.layout)
    sets, rows = layer.sets, shape.tokens
    by_rows = [w.t().contiguous() for w in layer.w]
    weights = [layer.compress(w, [1], "mse")[0] for w in layer.w]
    packed = layer.packed["fprop"]

    def call(dense: list[Tensor], transpose: bool) -> Callable[[int], Tensor]:
        return lambda i: torch.ops.nm.mm(
            packed[i % sets], dense[i % sets], rows, layout, None, transpose
        )

    by_columns = [w.t() for w in layer.w]
    calls = {
        "torch.mm|dense by columns": layer.dense("fprop"),
        "torch.mm|dense by rows": lambda i: torch.mm(layer.x[i % sets], by_rows[i % sets]),
        "nm.mm|dense by columns": call(by_columns, False),
        "nm.mm|dense by rows": call(by_rows, False),
        "nm.mm|dense by columns, result transposed": call(by_columns, True),
        "nm.mm|dense by rows, result transposed": call(by_rows, True),
        "nm.mm|W compressed, result transposed": lambda i: torch.ops.nm.mm(
            weights[i % sets], layer.x[i % sets].t(), shape.outputs, layout, None, True
        ),
    }
    for name, times in session.device.time(calls).items():
        provider, config = name.split("|")
        session.row(provider, "time (us)", [t * 1e6 for t in times], x=str(shape), config=config)


def graphs(session: Session, shape: Shape) -> None:
    """Compress and multiply: launched, and replayed as a CUDA graph; the results must be equal."""
    layer = Layer(shape, session.device)
    call, count = layer.sparse("fprop", "mvue"), 2
    expected = [call(i).clone() for i in range(count)]
    replay = session.device.captured(call, count)
    for i in range(count):
        same = torch.equal(replay(i), expected[i])
        session.check(f"replay of set {i}", same)
    dense = session.device.captured(layer.dense("fprop"), count)
    calls = {
        "torch.mm, graph": dense,
        "nm.compress + nm.mm, graph": replay,
        "torch.mm": layer.dense("fprop"),
        "nm.compress + nm.mm": call,
    }
    for provider, times in session.device.time(calls).items():
        micros = [t * 1e6 for t in times]
        session.row(provider, "time (us)", micros, x=str(shape), config="fprop mvue")
    for provider, run in calls.items():
        each = partial(run, 0)
        wall = [session.device.wall_time(each, 20) * 1e6 for _ in range(5)]
        session.row(provider, "wall time (us)", wall, x=str(shape), config="fprop mvue")
