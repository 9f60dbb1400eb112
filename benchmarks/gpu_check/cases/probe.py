"""Section ``probe``: whether cuSPARSELt packs operands into the bytes that nmcompile writes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_check.cases.inputs import DTYPES, byte_difference, operand, word
from benchmarks.gpu_check.events import Case, Session
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks import reference
from nmcompile.masks.formats import NMFormat

#: (rows, columns) in units of the layout's padding: one tile, odd multiples, tall, wide.
UNITS = ((1, 1), (1, 2), (2, 1), (3, 5), (7, 3), (16, 33), (40, 1))
#: Sizes that are padded: what is packed is the padded operand.
RAGGED = ((70, 50), (1, 4), (200, 333))


def cases(rehearse: bool) -> list[Case]:
    """One case for each dtype."""
    same = {"section": "probe", "parallel": True}
    return [Case(name=word(d), run=partial(compare, dtype=d), **same) for d in DTYPES]


def compare(session: Session, dtype: torch.dtype) -> None:
    """Our bytes against those of ``torch._cslt_compress``, for every shape."""
    layout = session.device.layout
    if not layout.by_cusparselt:
        session.note("layout", f"{layout}: no cuSPARSELt here, nothing to compare")
        return
    compressor = _imitation if session.device.rehearsal else torch._cslt_compress
    rows, columns = layout.row_multiple, layout.column_multiple
    shapes = [(r * rows, c * columns) for r, c in UNITS] + list(RAGGED)
    name = session.device.name
    for shape in shapes:
        ours, pruned = packed_operand(*shape, dtype, layout)
        padded = pruned.new_zeros(layout.padded(*shape))
        # As cusparselt.repack pads; blocks with fewer than two survivors are the library's own.
        padded[: shape[0], : shape[1]] = pruned
        theirs = compressor(padded.to(name))
        whole = shape == layout.padded(*shape)
        text = byte_difference(theirs, ours)
        if whole:
            session.check(f"{shape[0]}x{shape[1]}", not text, text)
        else:
            session.note(f"padded {shape[0]}x{shape[1]}", text or "equal")
    try:
        matches = cusparselt.writes_layout(compressor, layout, dtype, torch.device(name))
        session.check("the package's own probe", matches)
    finally:
        session.note("layout", str(layout))


def packed_operand(
    rows: int, columns: int, dtype: torch.dtype, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Our packed tensor and the pruned matrix of random numbers, on the CPU."""
    x = operand("normal", rows, columns, dtype)
    # No zeros: which indices stand for missing survivors is the library's choice.
    x = torch.where(x == 0, torch.ones_like(x), x)
    whole = packing.whole_blocks(x, 1, 4)
    values, keep = reference.prune_and_mask(whole, None, 0, 2, 4, [1], "mse")
    packed = packing.pack(keep, values, (rows, columns), layout, NMFormat(2, 4), "mse")
    return packed, values[:rows, :columns]


def _imitation(values: Tensor) -> Tensor:
    """For the rehearsal: a compressor that finds the survivors itself."""
    shape = (values.shape[0], values.shape[1])
    layout = Layout.CUSPARSELT_SM90
    return packing.pack(values != 0, values, shape, layout, NMFormat(2, 4), "mvue")
