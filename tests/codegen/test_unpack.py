"""The kernels that read packed operands, and what is checked before one is launched."""

from __future__ import annotations

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decompress", "unpack_mask", "compress_like"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_that_read_packed_operands_compile(name: str, capability: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nmcompile.codegen.device import unpack

    kernel = getattr(unpack, f"{name}_kernel")
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
