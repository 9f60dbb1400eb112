"""Which values a kernel can read packed, and what that costs."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from nmcompile.compressed.layouts import Layout
from nmcompile.graph.unpacked import as_input, bytes_read, is_unpadded, unpacked
from nmcompile.ops.schemas import Decompress, UnpackMask

ROWS, COLUMNS = 64, 128


def node(
    op: type[Decompress | UnpackMask] = Decompress,
    layout: Layout = Layout.CUSPARSELT_SM90,
    dtype: torch.dtype = torch.bfloat16,
    rows: int = ROWS,
) -> fx.Node:
    graph = fx.Graph()
    packed = graph.placeholder("packed")
    packed.meta["val"] = torch.empty(layout.packed_shape(rows, COLUMNS, dtype), dtype=dtype)
    call = op(packed, rows, COLUMNS, str(layout))
    made = graph.call_function(op.operator, call.args)
    made.meta["val"] = call.operator(packed.meta["val"], *call.args[1:])
    return made


@pytest.mark.parametrize(("op", "shape"), [(Decompress, "packed"), (UnpackMask, "kept")])
def test_it_is_read_where_it_was_packed(op: type[Decompress | UnpackMask], shape: str) -> None:
    call = unpacked(node(op))
    assert call is not None
    given = as_input(call, "x")
    assert (given.shape, given.dtype) == (shape, "bfloat16")
    assert given.layout is Layout.CUSPARSELT_SM90


def test_bytes_are_those_of_what_is_packed() -> None:
    """Two values of two bytes and half a byte of metadata for a block of four."""
    for op, expected in ((Decompress, 4.5), (UnpackMask, 0.5)):
        call = unpacked(node(op))
        assert call is not None
        assert bytes_read(call) == ROWS * COLUMNS // 4 * expected


def test_padded_sizes_cannot_be_told_from_the_packed_tensor() -> None:
    for rows, known in ((ROWS, True), (ROWS - 1, False)):
        call = unpacked(node(rows=rows))
        assert call is not None
        assert is_unpadded(call) is known


def test_other_values_are_read_as_they_are() -> None:
    assert unpacked(node(dtype=torch.float32)) is None
    assert unpacked(node(layout=Layout.CUSPARSELT)) is None  # no kernel knows its order
    made = node()
    with made.graph.inserting_after(made):
        assert unpacked(made.graph.call_function(torch.ops.aten.neg.default, (made,))) is None
