"""The oracle of a kernel's prologue."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.launch import operand_shape
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from tests.kernels.specs import inputs_of, spec
from tests.passes.fused import compress, fused, half


def test_the_oracle_of_a_spec_computes_in_float32_and_rounds_once() -> None:
    def f(x: Any, y: Any) -> Any:
        return compress(F.silu(x) * y + x)

    x, y = half(8, 32), half(8, 32, seed=2)
    _, (spec,) = fused(f, x, y)
    values = [x, y]
    expected = (F.silu(x.float()) * y.float() + x.float()).to(torch.bfloat16)
    (actual,) = evaluate(spec, values, *operand_shape(spec, values))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-6)


def test_what_is_smaller_than_the_operand_is_broadcast() -> None:
    kind = spec("scale_rows", dtype="bfloat16")
    x, row, scale = inputs_of(kind, 4, 8)
    expected = -torch.relu(x.float() * row - scale)
    for shape in ((4, 1), (4,), (1, 4, 1)):
        (found,) = evaluate(kind, [x, row.reshape(shape), scale.reshape(())], 4, 8)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected.to(torch.bfloat16))


def test_an_operand_without_a_prologue_is_itself_row_by_row() -> None:
    x = half(8, 4).t()
    (found,) = evaluate(spec(dtype="bfloat16"), [x], 4, 8)
    assert torch.equal(found, x)
    assert found.is_contiguous()


def test_a_mask_chooses_and_its_other_values_do_not_count() -> None:
    kind = spec("dropout_residual", dtype="bfloat16")
    x, mask, skip = inputs_of(kind, 4, 8)
    x[~mask] = torch.nan
    (found,) = evaluate(kind, [x, mask, skip], 4, 8)
    assert torch.equal(found, (torch.where(mask, x.float() * 1.25, 0.0) + skip).to(torch.bfloat16))


def test_what_is_packed_is_read_as_it_was_before() -> None:
    """Its mask, and with it the operand, of any layout."""
    for layout in (Layout.CUSPARSELT_SM90, Layout.CUTLASS_SM80):
        kind = spec("masked_packed", dims=(), layout=layout, dtype="bfloat16")
        dy, packed, gate = inputs_of(kind, 5, 8)
        mask = packing.unpack_mask(packed, 5, 8, layout)
        pruned = packing.unpack(gate, 5, 8, layout)
        expected = torch.where(mask, dy.float(), -1.0) * pruned.float()
        (found,) = evaluate(kind, [dy, packed, gate], 5, 8)
        assert torch.equal(found, expected.to(torch.bfloat16))
