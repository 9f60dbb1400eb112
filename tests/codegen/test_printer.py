"""Specs, the sources that are printed from them, and the files that hold these."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nmcompile.codegen import loader
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.printer import parameters, print_kernel
from tests.kernels.specs import all_specs, spec


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.cache, "folder", lambda: tmp_path / "nmcompile")


@pytest.mark.parametrize("number", range(len(list(all_specs()))))
def test_every_spec_prints_a_module_with_its_kernel(number: int) -> None:
    kernel = list(all_specs())[number]
    tree = ast.parse(print_kernel(kernel))
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    assert set(functions) - {"prologue"} == {"operand", kernel.name}
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
    assert "load_per_column(bias, at, C, FIT)  # float16, of input\n" in source
    assert source.startswith('"""compress_both_mvue_2_4_add: aten.add.Tensor [R, C] in float16')


def test_both_orders_of_the_orientations_write_the_right_results() -> None:
    first, second = (print_kernel(spec(dims=d, method="mvue")) for d in ((1, 0), (0, 1)))
    assert "packed0, packed1, R, C, tl.load(seed), stream0, stream1," in first
    assert "packed1, packed0, R, C, tl.load(seed), stream1, stream0," in second


def test_a_spec_survives_json_and_its_digest_covers_all_of_it() -> None:
    specs = list(dict.fromkeys(all_specs()))
    assert [KernelSpec.from_json(s.to_json()) for s in specs] == specs
    assert len({s.digest for s in specs}) == len(specs)


def test_a_kernel_is_a_file_that_is_written_once() -> None:
    path = loader.kernel_path(spec())
    assert path.read_text() == print_kernel(spec())
    before = path.stat().st_mtime_ns
    assert loader.kernel_path(spec()) == path
    assert path.stat().st_mtime_ns == before


def test_a_broken_file_is_written_again() -> None:
    path = loader.kernel_path(spec())
    path.write_text("half of a ker")
    assert loader.kernel_path(spec()).read_text() == print_kernel(spec())


def test_the_kernels_of_a_graph_are_recorded_once_each() -> None:
    loader.record_kernels("digest", [spec(), spec(dims=(0,))])
    loader.record_kernels("digest", [spec()])
    assert [p.name.split("_")[1] for p in loader.recorded_kernels("digest")] == ["rows", "columns"]
    assert loader.recorded_kernels("another") == ()
