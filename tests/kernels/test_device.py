"""The device functions without a device: right as PTX, and fast as far as machine code tells.

That their plain forms are right is the suite's (``test_tiles.py``, ``test_primitives.py``).

Claims:
- The inline instructions that stand for plain Triton on a GPU write what the oracle says: their
  PTX, run by an interpreter of its own (``ptx.py``), for 8.0 and for 9.0.
- With plain Triton in the place of every inline instruction the kernels compile too.
- The static check compiles what the compiler prints, passes good kernels and fails bad ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.static_check.__main__ import main
from benchmarks.static_check.cases import Case, compile_case
from benchmarks.static_check.model import examine, judge
from benchmarks.static_check.sass import Machine, access_width, covering_width
from benchmarks.static_check.throughput import busiest, weighted
from nmcompile.codegen.device.host import Tile, fit_of, launch_grid
from nmcompile.codegen.device.layouts import quad_bytes, quad_word
from nmcompile.codegen.device.philox import words_of_call
from nmcompile.codegen.device.primitives import load_four, round_pair
from nmcompile.codegen.device.rows import pack_block
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.printer import print_kernel
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks import reference
from nmcompile.masks.formats import NMFormat
from nmcompile.passes.plan import Kernels
from nmcompile.passes.run import run
from tests.kernels import ptx
from tests.kernels.specs import spec as kernel_spec
from tests.kernels.target import hard_operand
from tests.passes.fused import FUSING

MSE = Case("sm_90", "mse", 2, "rows", "bf16", "cusparselt_sm90")
MVUE = Case("sm_90", "mvue", 2, "columns", "bf16", "cusparselt_sm90")


@triton.jit
def _blocks(
    x, seed, out, METHOD: tl.constexpr, N: tl.constexpr, STORAGE: tl.constexpr, ISA: tl.constexpr
):
    """One block a thread: its values, its nibble in two forms, and its words as rounded floats."""
    i = tl.program_id(0) * 32 + tl.arange(0, 32)
    w01, w23 = tl.load(x + 2 * i), tl.load(x + 2 * i + 1)
    words = words_of_call(i, -3, tl.load(seed).to(tl.int64) * 0x12345678911)
    values, code = pack_block(w01, w23, words[1], words[2], METHOD, N, STORAGE, ISA)
    quad = (code, code, code, code)
    tl.store(out + 4 * i, values)
    tl.store(out + 4 * i + 1, quad_bytes(quad, METHOD, ISA))
    tl.store(out + 4 * i + 2, quad_word(quad, quad, METHOD, "cusparselt_sm90", ISA))
    low, high = w01.to(tl.float32, bitcast=True), w23.to(tl.float32, bitcast=True)
    tl.store(out + 4 * i + 3, round_pair(low, high, STORAGE, ISA))


@triton.jit
def _quarters(x, out, ISA: tl.constexpr):
    """Four float32 a thread, stored one by one in the opposite order."""
    i = tl.program_id(0) * 32 + tl.arange(0, 32)
    x0, x1, x2, x3 = load_four(x.to(tl.pointer_type(tl.float32)), i, ISA)
    tl.store(out + 4 * i, x3.to(tl.int32, bitcast=True))
    tl.store(out + 4 * i + 1, x2.to(tl.int32, bitcast=True))
    tl.store(out + 4 * i + 2, x1.to(tl.int32, bitcast=True))
    tl.store(out + 4 * i + 3, x0.to(tl.int32, bitcast=True))


def _ptx(kernel: Any, isa: int, **constants: Any) -> str:
    constants |= {"ISA": isa}
    signature = {name: "constexpr" if name in constants else "*i32" for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, values, {})
    target = GPUTarget("cuda", isa, 32)
    return str(triton.compile(source, target=target, options={"num_warps": 1}).asm["ptx"])


def _same(mine: Tensor, expected: Tensor) -> bool:
    bits = mine.view(torch.int16) == expected.view(torch.int16)
    return bool((bits | (mine.isnan() & expected.isnan())).all())


@pytest.mark.parametrize("isa", [80, 90])
@pytest.mark.parametrize("n", [2, 1])
@pytest.mark.parametrize("method", ["mse", "mvue"])
@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_inline_instructions_equal_the_oracle(storage: str, method: str, n: int, isa: int) -> None:
    dtype = torch.bfloat16 if storage == "bf16" else torch.float16
    x = hard_operand(256, 128, dtype).view(-1, 4)
    out = np.zeros((len(x), 4), np.int32)
    words = x.view(torch.int32).numpy()
    seed = 5
    buffers = [words.reshape(-1), np.array([seed], np.int32), out.reshape(-1)]
    ptx.run(_ptx(_blocks, isa, METHOD=method, N=n, STORAGE=storage), buffers, len(x), 32)

    key = torch.tensor([seed * 0x12345678911])
    uniforms = reference.philox_uniforms(key, -3, 4 * len(x)).view(-1, 4)
    blocks = x.view(len(x), 2 // n, 2 * n)
    keep, values = reference.prune_blocks(blocks, n, method, uniforms[:, 1 : 1 + 2 // n])
    shape = (len(x) // 8, 32)
    packed = packing.pack(
        keep.view(shape), values.view(shape), shape, Layout.ROW_MAJOR, NMFormat(n, 2 * n), method
    )
    expected, metadata = packing.split(packed, *shape, Layout.ROW_MAJOR)
    nibbles = torch.stack((metadata & 15, metadata >> 4), -1).view(-1).numpy()
    mine = torch.from_numpy(out)
    assert _same(mine[:, 0].contiguous().view(dtype), expected.reshape(-1))
    assert (out[:, 1] == nibbles.astype(np.int32) * 0x01010101).all()
    assert (out[:, 2].view(np.uint32) == nibbles.astype(np.uint32) * 0x11111111).all()
    rounded = torch.from_numpy(words).view(torch.float32).to(dtype)
    assert _same(mine[:, 3].contiguous().view(dtype), rounded.view(-1))


def test_four_floats_are_one_load() -> None:
    text = _ptx(_quarters, 90)
    assert text.count("ld.global.v4.f32") == 1
    x = np.arange(128 * 4, dtype=np.int32)
    out = np.zeros_like(x)
    ptx.run(text, [x, out], 128, 32)
    assert (out.reshape(-1, 4)[:, ::-1] == x.reshape(-1, 4)).all()


@pytest.mark.parametrize("fit", ["full", "aligned"])
def test_a_group_of_four_columns_is_one_read(fit: str) -> None:
    """Of a residual in float32 and of flags too, where nothing is ragged."""
    case = Case.of("sm_90", kernel_spec("dropout_residual", (1, 0), dtype="bfloat16"), "residual")
    found = examine(replace(case, fit=fit))
    assert found.failures == []
    widths = {access_width(op) for op in found.machine.opcodes if op.startswith("LDG")}
    assert widths <= {16, 8, 4}  # of four columns: float32, 16 bits, flags


def at_the_kept_places() -> KernelSpec:
    kind = kernel_spec("silu_mul_bias", dtype="bfloat16")
    (operand,) = kind.operands
    alike = operand.model_copy(update={"alike": ("gate", "up")})
    return kind.model_copy(update={"operands": (alike,)})


@pytest.mark.parametrize(
    "kind",
    [
        kernel_spec("masked_packed", (1, 0), "mvue", dtype="bfloat16", keep_dense=False),
        kernel_spec("packed_alone", (), dtype="bfloat16"),
        at_the_kept_places(),
    ],
    ids=lambda kind: kind.name,
)
def test_what_reads_or_writes_more_packed_tensors_does_not_spill(kind: KernelSpec) -> None:
    found = examine(Case.of("sm_90", kind, "packed"))
    assert found.failures == []
    assert found.store_width == (8 if found.case.halved else 16)


@pytest.mark.parametrize("method", ["mse", "mvue"])
def test_plain_triton_compiles(method: str) -> None:
    case = Case("sm_90", method, 2, "rows", "bf16", "cusparselt_sm90", isa=0, tile=Tile(64, 64, 4))
    opcodes = examine(case).machine.opcodes
    assert not any(op.startswith(("HMNMX2", "IDP")) for op in opcodes)


@pytest.mark.skipif(
    not triton.__version__.startswith("3.7."), reason="the published counts are Triton 3.7's"
)
def test_the_instructions_that_the_count_relies_on_are_there() -> None:
    opcodes = Counter[str]()
    for op, count in examine(MVUE).machine.opcodes.items():
        opcodes[op.split(".")[0]] += count
    blocks = MVUE.shape.rows * MVUE.shape.columns / (32 * MVUE.shape.warps) / 4
    assert opcodes["HMNMX2"] == blocks
    assert opcodes["FSET"] == 6 * blocks
    # Nothing goes through shared memory but the metadata, and nothing waits at a barrier.
    assert opcodes["BAR"] == 0


@pytest.mark.parametrize("orientations", ["rows", "columns"])
def test_sizes_of_one_compile(orientations: str) -> None:
    """Triton replaces arguments that are 1 by constants, which are no tensors."""
    case = Case("sm_90", "mse", 2, orientations, "bf16", "cusparselt_sm90", fit="ragged",
                tile=Tile(64, 64, 4))  # fmt: skip
    compile_case(case, ones=("R", "x_stride"))
    compile_case(case, ones=("C",))


def test_static_check_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    written = tmp_path / "static.csv"
    arguments = ["--arch", "sm_90", "--workers", "1", "--csv", str(written)]
    assert main([*arguments, "--kernel", "1:2-rows-bf16"]) == 0
    assert "mse-1:2-rows-bf16" in capsys.readouterr().out
    assert len(written.read_text().splitlines()) == 3


def test_static_check_writes_the_printed_sources(tmp_path: Path) -> None:
    assert main(["--arch", "sm_90", "--kernel", "swiglu", "--sources", str(tmp_path)]) == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 6
    assert names[0] == "mse-2_4-both-bf16-cusparselt_sm90-swiglu.py"
    case = replace(MSE, orientations="both", prologue="swiglu")
    assert (tmp_path / names[0]).read_text() == print_kernel(case.spec)


def _gelu(x: Tensor, _: Tensor) -> Any:
    return _compress(F.gelu(x, approximate="tanh"))


def _swiglu(gate: Tensor, up: Tensor) -> Any:
    y = F.silu(gate) * up
    return _compress(y), y @ y.t()


def _compress(x: Tensor) -> Any:
    return torch.ops.nm.compress(x, None, [0], [1], 2, 4, "mse", "cusparselt_sm90")


@pytest.mark.parametrize(("name", "function"), [("gelu", _gelu), ("swiglu", _swiglu)])
def test_prologues_are_those_of_the_compiler(name: str, function: Callable[..., Any]) -> None:
    x, y = (torch.empty(64, 64, dtype=torch.bfloat16) for _ in range(2))
    graph = make_fx(function, select_decomp_table(), tracing_mode="fake")(x, y).graph
    kernels = Kernels(graph, ("cpu",))
    run(FUSING, kernels, "graph")
    assert kernels.specs == [replace(MSE, prologue=name).spec]


def test_static_check_fails_a_kernel_that_loads_two_bytes() -> None:
    bad = Case("sm_90", "mse", 2, "rows", "bf16", "cusparselt_sm90", fit="ragged")
    assert any("loads its inputs 2 bytes at a time" in f for f in examine(bad).failures)


def test_static_check_fails_narrow_stores() -> None:
    # Too few elements a thread: two values of two blocks are 8 bytes.
    narrow = Case(*("sm_90", "mse", 2, "columns", "bf16", "cusparselt_sm90"), tile=Tile(64, 64, 4))
    assert any("stores its results" in f or "loads" in f for f in examine(narrow).failures)


def test_static_check_fails_spills_loops_and_slow_kernels() -> None:
    wide = Counter({"LDG.E.128": 64, "STG.E.128": 64})
    fine = Machine(wide, loop=False, registers=64, spilled=0, shared=0)
    assert not judge(MSE, fine).failures
    assert "spills 8 bytes" in judge(MSE, Machine(wide, False, 255, 8, 0)).failures
    assert any("loop" in f for f in judge(MSE, Machine(wide, True, 64, 0, 0)).failures)
    slow = Machine(wide + Counter({"LOP3.LUT": 64 * 15}), False, 64, 0, 0)
    assert any("predicted" in f for f in judge(MSE, slow).failures)
    assert any("weighted" in f for f in judge(MSE, slow).failures)
    other = Case("sm_80", "mse", 2, "rows", "bf16", "cutlass_sm80")
    assert not judge(other, slow).failures


def test_widths_are_read_from_opcodes() -> None:
    widths = [
        access_width(op) for op in ("LDG.E.128", "STG.E.64", "LDG.E", "STG.E.U8", "LDG.E.S16")
    ]
    assert widths == [16, 8, 4, 1, 2]
    machine = Machine(Counter({"LDG.E.128": 2, "LDG.E.64": 1, "LDG.E": 3}), False, 1, 0, 0)
    assert [covering_width(machine, "LDG", n) for n in (32, 33, 41, 53)] == [16, 8, 4, 0]


def test_costs_of_instructions() -> None:
    opcodes = {"FADD": 2, "LOP3.LUT": 3, "MUFU.EX2": 1, "IMAD.WIDE.U32": 1, "LDG.E.128": 1}
    assert weighted(opcodes, "sm_90") == 1 + 3 + 4 + 2 + 2
    assert weighted({"FADD": 2}, "sm_80") == 2
    assert busiest({**opcodes, "MUFU.EX2": 2}, "sm_90") == ("XU", 2 / 16)


def test_grid_covers_the_padding_and_the_axis_limit() -> None:
    assert launch_grid(64, 64, 64, 64) == (2, 2, 1)
    x, y, z = launch_grid(65535 * 64 + 1, 128, 64, 64)
    assert x == 2
    assert y <= 65535
    assert y * z * 64 >= 65535 * 64 + 1


@pytest.mark.parametrize("tile", [Tile(64, 64, 4), Tile(64, 256, 8), Tile(128, 128, 4)])
@pytest.mark.parametrize("tiles", [3, 65535, 65536, 65537, 2 * 65535 + 1])
def test_full_means_that_no_program_is_beyond_the_operand(tile: Tile, tiles: int) -> None:
    """More row tiles than one axis of the grid takes: two axes hold a few too many."""
    columns = max(128, tile.columns)
    for rows in (128 * tiles, 128 * tiles + 64, 256 * tiles):
        x, y, z = launch_grid(rows, columns, tile.rows, tile.columns)
        assert max(y, z) <= 65535
        assert x * y * z * tile.rows * tile.columns >= rows * columns
        fit = fit_of(rows, columns, [columns], [0], tile.rows, tile.columns)
        assert fit == ("full" if y * z * tile.rows == rows else "aligned")
    assert fit_of(256 * 65535, 128, [128], [0], 128, 128) == "full"
    assert fit_of(128 * 65537, 128, [128], [0], 128, 128) == "aligned"


def test_places_that_32_bits_do_not_hold() -> None:
    """Rows of an operand, or the distance between them, so long that a tile spans 2^31 words."""
    assert fit_of(128, 2**26, [2**26], [0], 64, 256) == "full"
    assert fit_of(64, 2**27, [2**27], [0], 64, 256) == "ragged"
    assert fit_of(128, 256, [2**27 - 8], [0], 64, 256) == "full"
    assert fit_of(128, 256, [256, 2**27], [0], 64, 256) == "ragged"
    assert fit_of(128, 256, [2**26], [0], 128, 128) == "ragged"
    with pytest.raises(ValueError, match="kernels take at most"):
        launch_grid(2**31 - 64, 4, 64, 64)


def test_fit() -> None:
    assert fit_of(256, 128, [128], [0], 64, 64) == "full"
    assert fit_of(250, 128, [128], [0], 64, 64) == "aligned"
    assert fit_of(250, 120, [120], [0], 64, 64) == "ragged"
    assert fit_of(250, 128, [130], [0], 64, 64) == "ragged"
    assert fit_of(250, 128, [128], [8], 64, 64) == "ragged"
    assert fit_of(2**20, 2**14, [2**14], [0], 64, 64) == "ragged"
