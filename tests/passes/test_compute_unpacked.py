"""Products read what one kernel computes from packed operands; nothing dense lies in between."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nmcompile.ops.fused_schemas import FusedCompress
from nmcompile.ops.schemas import Decompress, Mm, UnpackMask
from tests.passes.fused import compress, fused, half, nm, operators

ROWS, COLUMNS = 64, 128
PACKED = (ROWS, 9 * COLUMNS // 16)
KIND = (ROWS, COLUMNS, "cusparselt_sm90")


def exact_operand(kept: Any, up: Any) -> Any:
    """The pruned operand of a SwiGLU, from its inputs at the kept places."""
    h = F.silu(nm.decompress(kept, *KIND)) * nm.decompress(up, *KIND)
    return torch.where(nm.unpack_mask(kept, *KIND), h, 0.0)


def product(gradient: Any, h: Any) -> Any:
    """A weight gradient: h is its dense operand."""
    return nm.mm(gradient, h, 64, "cusparselt_sm90", None, False, True)


def test_an_operand_of_a_product_is_computed_from_what_is_packed() -> None:
    def f(gradient: Any, kept: Any, up: Any) -> Any:
        return product(gradient, exact_operand(kept, up))

    gm, (spec,) = fused(f, half(64, 36), half(*PACKED), half(*PACKED))
    assert sorted(i.shape for i in spec.inputs) == ["kept", "packed", "packed"]
    assert (spec.orientations, spec.dense_results) == ("dense", 1)
    assert {"mul", "where"} <= {*operators(spec)}
    (kernel,), (mm,) = FusedCompress.nodes(gm.graph), Mm.nodes(gm.graph)
    assert kernel < mm
    assert not Decompress.nodes(gm.graph)
    assert not UnpackMask.nodes(gm.graph)


def test_a_gradient_under_a_packed_mask_is_masked_in_a_kernel_for_a_library_call() -> None:
    def f(gradient: Any, kept: Any, dx: Any) -> Any:
        return product(gradient, torch.where(nm.unpack_mask(kept, *KIND), dx, 0.0))

    _, (spec,) = fused(f, half(64, 36), half(*PACKED), half(ROWS, COLUMNS))
    assert [i.shape for i in spec.inputs] == ["kept", "full"]


def test_what_inductor_reads_inside_of_its_kernels_stays_inductors() -> None:
    def f(kept: Any, up: Any) -> Any:
        return exact_operand(kept, up).sum(0)

    gm, specs = fused(f, half(*PACKED), half(*PACKED))
    assert not specs
    assert len(Decompress.nodes(gm.graph)) == 2


def test_an_unpacked_operand_alone_needs_no_other_kernel() -> None:
    def f(gradient: Any, kept: Any) -> Any:
        return product(gradient, nm.decompress(kept, *KIND))

    gm, specs = fused(f, half(64, 36), half(*PACKED))
    assert not specs
    assert len(Decompress.nodes(gm.graph)) == 1


def test_where_nothing_is_fused_nothing_is_computed() -> None:
    def f(gradient: Any, kept: Any, up: Any) -> Any:
        return product(gradient, exact_operand(kept, up))

    _, specs = fused(f, half(64, 36), half(*PACKED), half(*PACKED), fuse=False)
    assert not specs


def test_sizes_that_are_padded_and_no_input_tells_stay_inductors() -> None:
    """A whole input tells them."""
    rows = ROWS - 1
    kind = (rows, COLUMNS, "cusparselt_sm90")

    def alone(gradient: Any, kept: Any, dx: Any) -> Any:
        return product(gradient, nm.decompress(kept, *kind) * 2.0), dx.sum()

    def beside(gradient: Any, kept: Any, dx: Any) -> Any:
        return product(gradient, nm.decompress(kept, *kind) * dx)

    tensors = (half(64, 36), half(*PACKED), half(rows, COLUMNS))
    assert [len(fused(f, *tensors)[1]) for f in (alone, beside)] == [0, 1]


def test_kernels_of_gradients_read_what_is_packed() -> None:
    """The backward of a SwiGLU under the exact gradient: no dense tensor but dh is read."""

    def f(dh: Any, kept: Any, up: Any, seed: Any) -> Any:
        masked = torch.where(nm.unpack_mask(kept, *KIND), dh, 0.0)
        dup = masked * F.silu(nm.decompress(kept, *KIND))
        return compress(dup, (1, 0), seed), compress(dup * nm.decompress(up, *KIND), (1, 0), seed)

    seed = torch.ones(1, dtype=torch.int64)
    gm, specs = fused(f, half(ROWS, COLUMNS), half(*PACKED), half(*PACKED), seed)
    shapes = [sorted(i.shape for i in spec.inputs) for spec in specs]
    assert sorted(shapes) == [["full", "kept", "packed"], ["full", "kept", "packed", "packed"]]
    assert not Decompress.nodes(gm.graph)


def test_another_shape_of_the_same_size_is_read_as_it_is() -> None:
    """Its blocks are not the operand's."""

    def f(dh: Any, kept: Any, seed: Any) -> Any:
        gate = nm.decompress(kept, *KIND).reshape(COLUMNS, ROWS)
        return compress(dh * gate.tanh(), (1, 0), seed)

    seed = torch.ones(1, dtype=torch.int64)
    gm, (spec,) = fused(f, half(COLUMNS, ROWS), half(*PACKED), seed)
    assert {i.shape for i in spec.inputs} == {"full"}
    assert len(Decompress.nodes(gm.graph)) == 1


def test_nothing_that_follows_from_what_is_packed_is_written_for_a_kernel() -> None:
    """The sum of two masked gradients has as many bytes to read and to write as both."""

    def f(kept: Any, first: Any, second: Any, third: Any) -> Any:
        mask = nm.unpack_mask(kept, *KIND)
        masked = [torch.where(mask, dx, 0.0) for dx in (first, second, third)]
        return masked[0] + masked[1] + masked[2]

    gm, (spec,) = fused(f, half(*PACKED), *(half(ROWS, COLUMNS, seed=k) for k in range(3)))
    assert sorted(operators(spec)) == ["add", "add", "where", "where", "where"]
    assert not UnpackMask.nodes(gm.graph)


def test_what_a_kernel_computes_is_no_reader_of_what_another_computes() -> None:
    """``first`` is read by Inductor's kernel of ``second`` until that is ours."""

    def f(gradient: Any, kept: Any) -> Any:
        first = nm.decompress(kept, *KIND).tanh()
        return product(gradient, first), product(gradient, first * 2.0)

    _, specs = fused(f, half(64, 36), half(*PACKED))
    assert [operators(spec) for spec in specs] == [["tanh", "mul"], ["tanh"]]
