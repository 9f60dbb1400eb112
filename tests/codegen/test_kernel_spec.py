"""A kernel's spec: its identity, and how it is named."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from nmcompile.codegen.kernel_spec import STORAGE, KernelSpec, identity
from tests.kernels.specs import all_specs, spec, statement


def test_a_spec_survives_json_and_its_digest_covers_all_of_it() -> None:
    specs = list(dict.fromkeys(all_specs()))
    assert [KernelSpec.from_json(s.to_json()) for s in specs] == specs
    assert len({s.digest for s in specs}) == len(specs)


def test_equal_specs_are_one_key() -> None:
    specs = list(dict.fromkeys(all_specs()))
    again = [KernelSpec.from_json(s.to_json()) for s in specs]
    assert [{s: s.digest for s in specs}[s] for s in again] == [s.digest for s in specs]
    assert len({hash(s) for s in specs}) > len(specs) // 2


@pytest.mark.parametrize(
    ("dims", "orientations"),
    [((1,), "rows"), ((0,), "columns"), ((1, 0), "both"), ((0, 1), "both")],
)
def test_its_name_says_what_it_does(dims: tuple[int, ...], orientations: str) -> None:
    kind = spec("silu_mul_bias", dims, "mvue", (1, 2))
    assert kind.orientations == orientations
    assert kind.name == f"compress_{orientations}_mvue_1_2_add"
    assert spec(dims=dims).name == f"compress_{orientations}_mse_2_4_copy"


def test_a_kernel_that_compresses_nothing_computes() -> None:
    kind = spec("packed_alone", dims=())
    assert (kind.orientations, kind.dims, kind.dense_results) == ("dense", (), 1)
    assert kind.name == "compute_where"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_spec_of_the_operator_itself_reads_one_operand(dtype: torch.dtype) -> None:
    kind = identity(dtype, (1, 0), 2, 4, "mse", "row_major")
    (given,) = kind.inputs
    assert (given.shape, given.dtype, kind.dtype) == ("full", kind.dtype, str(dtype)[6:])
    assert kind.storage == STORAGE[dtype]
    assert (kind.statements, kind.dense_results) == ((), 0)


def test_a_statement_is_its_operator_with_names_and_literals() -> None:
    minus = statement("y", torch.ops.aten.sub.Tensor, "x", -2.5)
    assert minus.code == "x - (-2.5)"


def test_a_spec_does_not_change_and_knows_no_other_key() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().n = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        KernelSpec.from_json(spec().to_json().replace('"m":4', '"m":4,"k":8'))
