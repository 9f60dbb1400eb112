"""The kernels that read packed operands, and what is checked before one is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from nmcompile.codegen import unpack
from nmcompile.compressed.layouts import Layout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decompress", "unpack_mask", "compress_like"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_that_read_packed_operands_compile(name: str, capability: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nmcompile.codegen.device import unpack as kernels

    kernel = getattr(kernels, f"{name}_kernel")
    constants = {"LAYOUT": "cusparselt_sm90", "BLOCK": 1024, "WHOLE": True}
    sizes = ("R", "C", "rows", "columns")
    names = kernel.arg_names
    signature = {n: "i32" if n in sizes else "*bf16" for n in names if n not in constants}
    source = ASTSource(
        fn=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(k),): v for k, v in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert "st.global" in compiled.asm["ptx"]


def packed(rows: int, columns: int) -> torch.Tensor:
    layout = Layout.CUSPARSELT_SM90
    return torch.zeros(layout.packed_shape(rows, columns, torch.bfloat16), dtype=torch.bfloat16)


CALLS: dict[str, Callable[[int, int, torch.Tensor], torch.Tensor]] = {
    "decompress": lambda r, c, p: unpack.decompress(p, r, c, Layout.CUSPARSELT_SM90),
    "unpack_mask": lambda r, c, p: unpack.unpack_mask(p, r, c, Layout.CUSPARSELT_SM90),
    "compress_like": lambda r, c, p: unpack.compress_like(
        torch.zeros(r, c, dtype=torch.bfloat16), p, Layout.CUSPARSELT_SM90
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_sizes_are_checked_before_a_launch(name: str) -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="is not that of a 65 x 4 operand"):
        CALLS[name](65, 4, packed(64, 4))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_is_launched_for_an_empty_operand(name: str, shape: tuple[int, int]) -> None:
    pytest.importorskip("triton")
    found = CALLS[name](*shape, packed(*shape))
    assert found.numel() == 0
    assert found.shape == (packed(*shape).shape if name == "compress_like" else shape)
    assert found.dtype == (torch.bool if name == "unpack_mask" else torch.bfloat16)


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_runs_where_its_tensors_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from nmcompile.codegen.device import unpack as kernels

    events: list[Any] = []

    @contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        events.append(device)
        yield
        events.append("left")

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *_, **__: events.append("launched")

    monkeypatch.setattr(unpack, "on_device", on_device)
    monkeypatch.setattr(kernels, f"{name}_kernel", Kernel())
    CALLS[name](64, 4, packed(64, 4))
    assert events == [torch.device("cpu"), "launched", "left"]


@pytest.mark.parametrize(
    ("dtype", "exists"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)]
)
def test_kernels_exist_for_sixteen_bits_with_triton(
    dtype: torch.dtype, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_triton in (False, True):
        monkeypatch.setattr(unpack, "has_triton", lambda has=has_triton: has)
        assert unpack.can_launch(torch.zeros(1, dtype=dtype)) is (exists and has_triton)
