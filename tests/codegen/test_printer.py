"""The sources that are printed from specs."""

from __future__ import annotations

import ast

import pytest

from nmcompile.codegen.printer import parameters, print_kernel
from nmcompile.compressed.layouts import Layout
from tests.kernels.specs import all_specs, spec


@pytest.mark.parametrize("number", range(len(list(all_specs()))))
def test_every_spec_prints_a_module_with_its_kernel(number: int) -> None:
    kernel = list(all_specs())[number]
    tree = ast.parse(print_kernel(kernel))
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    numbers = range(len(kernel.operands))
    printed = {f"operand{k}" for k in numbers}
    if kernel.statements:
        printed |= {f"prologue{k}" for k in numbers}
    printed |= {f"others{k}" for k in numbers if kernel.operands[k].alike}
    assert set(functions) == printed | {kernel.name}
    arguments = [a.arg for a in functions[kernel.name].args.args]
    assert arguments == [*parameters(kernel), "ROWS", "COLUMNS", "FIT", "ISA"]


def test_what_does_not_vary_is_imported_and_what_is_not_used_is_not_printed() -> None:
    source = print_kernel(spec())
    assert "prologue" not in source
    assert "seed" not in source
    assert "store_dense" not in source
    assert "from nmcompile.codegen.device.rows import compress_rows" in source


def test_the_source_reads_like_the_graph() -> None:
    source = print_kernel(spec("silu_mul_bias", dims=(1, 0), method="mvue"))
    assert "    product = activated * up  # aten.mul.Tensor\n" in source
    assert "load_per_column(bias, at, C, FIT, ISA)  # float16, of input\n" in source
    assert source.startswith('"""compress_both_mvue_2_4_add: aten.add.Tensor [R, C] in float16')


def test_both_orders_of_the_orientations_write_the_right_results() -> None:
    first, second = (print_kernel(spec(dims=d, method="mvue")) for d in ((1, 0), (0, 1)))
    assert "packed0, packed1, R, C, tl.load(seed), stream0, stream1," in first
    assert "packed1, packed0, R, C, tl.load(seed), stream1, stream0," in second


def test_what_is_packed_is_loaded_in_its_own_layout() -> None:
    source = print_kernel(spec("packed_alone", dims=(), layout=Layout.CUTLASS_SM80))
    assert 'load_packed(gate, at, R, C, "cutlass_sm80", FIT)' in source
    assert 'load_kept(mask, at, R, C, "cutlass_sm80", FIT)' in source
    assert "compute_dense(\n        operand0, inputs, R, C, ROWS, COLUMNS, FIT, ISA," in source
    assert "packed0" not in source
