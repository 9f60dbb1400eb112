"""Mask kernels: which dimensions are one, what is printed and launched, what it compiles to.

What they compute is tested in ``tests/kernels``.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from torch import Tensor

from nmcompile.codegen import launch, loader, masks
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.mask_spec import MaskSpec
from nmcompile.codegen.masks import MaskLaunch, launch_of, lie_of
from nmcompile.codegen.printer import print_kernel
from nmcompile.masks import reference
from nmcompile.masks.formats import NMFormat
from tests.kernels.specs import spec


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_of.cache_clear()
    monkeypatch.setattr(launch, "_capability", lambda *_: 90)


def launched(x: Tensor, dims: list[int], format: str = "2:4", method: str = "mse") -> MaskLaunch:
    return launch_of(lie_of(x, torch.empty_like(x)), NMFormat.parse(format), tuple(dims), method)


def described(found: MaskLaunch) -> tuple[Any, ...]:
    return found.spec.lie, found.spec.ranks, found.constants["WHOLE"]


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("x", "dims", "expected"),
    [
        # one long row, whatever the rows, where no block crosses them
        (empty(6, 5, 64), [2], ("runs", (0, 1), True)),
        (empty(6, 5, 62), [2], ("runs", (1, 1), False)),
        (empty(6, 5, 64).transpose(0, 2), [0], ("runs", (0, 1), True)),
        (empty(6, 64)[:, :60], [1], ("runs", (1, 1), True)),
        # blocks beside each other
        (empty(60, 64), [0], ("across", (0, 1, 1), True)),
        (empty(3, 60, 64), [1], ("across", (0, 1, 1), True)),
        (empty(3, 62, 64), [1], ("across", (1, 1, 1), False)),
        (empty(4, 3, 7, 64), [0, 1, 2], ("across", (0, 1, 1), True)),
        # pixels of a batch: whole blocks in each image, or blocks that cross images
        (empty(2, 3, 4, 4), [0, 2, 3], ("runs", (0, 1), True)),
        (empty(2, 3, 5, 5), [0, 2, 3], ("runs", (1, 2), False)),
        (empty(1, 64), [0], ("across", (0, 1, 1), False)),
    ],
)
def test_dimensions_that_lie_as_one_are_one(x: Tensor, dims: list[int], expected: Any) -> None:
    assert described(launched(x, dims)) == expected


def test_tiles_go_along_what_lies_together() -> None:
    for x, swapped in ((empty(64, 48), False), (empty(48, 64).t(), True)):
        found = launched(x, [0, 1], method="transposable")
        assert described(found) == ("tiles", (0, 1, 1), True)
        assert found.spec.swapped == swapped
        assert (found.numbers["line0_x"], found.numbers["line0_y"]) == (1, 1)
    assert described(launched(empty(3, 62, 48), [1, 2], method="transposable"))[1] == (1, 1, 1)
    assert launched(empty(64, 48), [0, 1], "4:4", "transposable").spec.method == "mse"


def test_every_block_has_a_lane() -> None:
    for shape, dims, method in (
        ((70, 22), [0], "mse"),
        ((9, 4099), [1], "mvue"),
        ((5, 5), [0], "mse"),
    ):
        found = launched(empty(*shape), dims, method=method)
        blocks = torch.Size(shape).numel() // shape[dims[0]] * -(-shape[dims[0]] // 4)
        (programs, *_), lanes = found.grid, found.constants["LANES"]
        assert (programs - 1) * lanes < blocks <= programs * lanes
        assert not found.constants["WIDE"]
    assert launched(empty(2**16, 2**16), [1]).constants["WIDE"]
    assert launched(empty(4, 2**31)[:, :: 2**20], [1]).constants["WIDE"]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (2, 2)])
def test_patterns_are_those_of_the_oracle_in_its_order(n: int, m: int) -> None:
    expected = [
        tuple(r * m + c for r, kept in enumerate(pattern) for c in kept)
        for pattern in reference.transposable_patterns(n, m)
    ]
    assert list(masks.transposable_patterns(n, m)) == expected


def test_what_is_printed() -> None:
    spec = MaskSpec(
        n=2, m=4, method="mvue", dtype="float32", mask=False, lie="across", ranks=(0, 2, 1)
    )
    text = print_kernel(spec)
    ast.parse(text)
    assert text.startswith('"""prune_across_mvue_2_4: the pruned values of 2:4 mvue in float32')
    assert spec.to_json()[:60] in text
    assert (
        "    along = (along0, along1), (along0_x, along1_x), (along0_y, along1_y), along0 * along1"
        in text
    )
    assert '(do_not_specialize=["stream0"])' in text
    assert len(text.splitlines()) < 40
    for name in masks.parameters(spec):
        assert text.count(name) >= 2
    other = spec.model_copy(update={"mask": True})
    assert print_kernel(other) != text
    assert other.digest != spec.digest


def test_float64_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "has_triton", lambda: True)
    assert masks.has_kernel(torch.float32)
    assert not masks.has_kernel(torch.float64)


def compiled(
    x: Tensor,
    dims: list[int],
    format: str,
    method: str,
    capability: int,
    computed: KernelSpec | None = None,
) -> Any:
    """The machine code of a kernel as Triton would launch it, and the launch."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from benchmarks.static_check.sass import disassemble

    found = launched(x, dims, format, method)
    if computed is not None:
        found = masks.computing(found, computed, x.shape[-1])
    kernel = loader.load(found.spec)
    types = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "bool": "*i1"}
    own = types[str(x.dtype).removeprefix("torch.")]
    inputs = {i.name: types[i.dtype] for i in computed.inputs} if computed else {}
    tensors = {"x": own, "y": own, "dense": own, **inputs}
    pointers = {**tensors, "seed": "*i64"}
    constants = {**found.constants, **{k: v for k, v in found.numbers.items() if v == 1}}
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(index,)] = "constexpr", constants[name]
            continue
        signature[name] = pointers.get(name, "i32")
        if name in tensors or found.numbers.get(name, 1) % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    target = GPUTarget("cuda", capability, 32)
    done = triton.compile(source, target=target, options={"num_warps": found.warps})
    return disassemble(done.asm["cubin"], done.metadata.shared), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "format", "method", "dims"),
    [
        (torch.float32, "2:4", "mse", [1]),
        (torch.float32, "2:4", "mvue", [1]),
        (torch.bfloat16, "2:4", "mse", [0]),
        (torch.bfloat16, "2:4", "mvue", [0]),
        (torch.bfloat16, "2:4", "mvue", [1]),
        (torch.bfloat16, "4:8", "mvue", [1]),
        (torch.bfloat16, "2:4", "approx-mvue", [1]),
        (torch.bfloat16, "2:4", "transposable", [0, 1]),
        (torch.float32, "2:4", "transposable", [0, 1]),
    ],
)
@pytest.mark.parametrize("capability", [80, 90])
def test_no_spill_and_16_bytes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    format: str,
    method: str,
    dims: list[int],
    capability: int,
) -> None:
    pytest.importorskip("triton")
    from benchmarks.static_check.sass import covering_width

    monkeypatch.setattr(launch, "_capability", lambda *_: capability)
    x = empty(4096, 4096, dtype=dtype)
    machine, found = compiled(x, dims, format, method, capability)
    m = found.spec.m
    elements = found.constants["LANES"] * (m * m if method == "transposable" else m)
    moved = elements / (32 * found.warps) * x.element_size()
    assert machine.spilled == 0
    assert covering_width(machine, "LDG", moved) == 16
    assert covering_width(machine, "STG", moved) == 16


@pytest.mark.slow
@pytest.mark.parametrize("dims", [[1], [0]], ids=["runs", "across"])
@pytest.mark.parametrize("method", ["mse", "mvue"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["silu_mul_bias", "gelu_tanh", "dropout_residual", "scale_rows"])
def test_no_spill_where_the_operand_is_computed(
    name: str, dtype: str, method: str, dims: list[int]
) -> None:
    pytest.importorskip("triton")
    from benchmarks.static_check.sass import covering_width

    computed = spec(name, dims=(), dtype=dtype)
    x = empty(4096, 4096, dtype=getattr(torch, dtype))
    machine, found = compiled(x, dims, "2:4", method, 90, computed)
    moved = found.constants["LANES"] * 4 / (32 * found.warps) * x.element_size()
    assert machine.spilled == 0
    assert covering_width(machine, "STG", moved) == 16
