"""nm::unpack_mask, nm::compress_like and nm::fused_compress on the CPU."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.codegen.evaluate import evaluate
from nmcompile.compressed.layouts import Layout
from nmcompile.ops.schemas import FusedCompress
from tests.kernels.specs import PROLOGUES, inputs_of, spec

nm = torch.ops.nm
SEED = torch.tensor([7])


def packed(x: torch.Tensor, layout: str, format: tuple[int, int] = (2, 4)) -> torch.Tensor:
    return torch.ops.nm.compress(x, None, [0], [1], *format, "mse", layout)[0]


@pytest.mark.parametrize("layout", list(map(str, Layout)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 64), (7, 22)])
def test_the_mask_and_the_kept_places(layout: str, dtype: Any, shape: tuple[int, int]) -> None:
    x, other = torch.randn(2, *shape).to(dtype)
    x.view(-1)[::3] = 0
    mask = nm.unpack_mask(packed(x, layout), *shape, layout)
    keep = torch.ops.nm.keep_mask(x, None, 0, 2, 4, [1], "mse")
    assert torch.equal(mask & keep, keep)
    if shape[1] % 4 == 0:
        assert torch.equal(mask, keep)
    like = nm.compress_like(other, packed(x, layout), layout)
    dense = torch.ops.nm.decompress(like, *shape, layout)
    assert torch.equal(dense, torch.where(mask, other, 0))


def test_the_kept_places_of_the_operand_itself_are_the_operand() -> None:
    x = torch.randn(64, 64).half()
    assert torch.equal(nm.compress_like(x, packed(x, "row_major"), "row_major"),
                       packed(x, "row_major"))  # fmt: skip


@pytest.mark.parametrize("prologue", PROLOGUES)
@pytest.mark.parametrize("method", ["mse", "mvue"])
def test_fused_compress_is_its_prologue_then_compress(prologue: str, method: str) -> None:
    kind = spec(prologue, (0, 1), method, dtype="bfloat16")
    inputs = inputs_of(kind, 40, 72)
    seed = SEED if method == "mvue" else None
    results = FusedCompress(inputs, seed, [3, 4], kind.to_json()).run()
    operand = evaluate(kind, inputs, 40, 72)
    expected = nm.compress(operand, seed, [3, 4], [0, 1], 2, 4, method, str(kind.layout))
    for mine, theirs in zip(results, [*expected, operand], strict=False):
        assert torch.equal(mine.view(torch.int16), theirs.view(torch.int16))
    assert len(results) == 2 + kind.keep_dense


def test_opcheck() -> None:
    x = torch.randn(16, 32)
    blob = packed(x, "row_major")
    torch.library.opcheck(nm.unpack_mask.default, (blob, 16, 32, "row_major"))
    torch.library.opcheck(nm.compress_like.default, (x, blob, "row_major"))
    kind = spec("silu_mul_bias", (1, 0), "mvue")
    inputs = [torch.randn(16, 32).half(), torch.randn(16, 32).half(), torch.randn(32).half()]
    torch.library.opcheck(FusedCompress.operator, (inputs, SEED, [1, 2], kind.to_json()))


@pytest.mark.parametrize("prologue", [p for p in PROLOGUES if p != "copy"])
def test_the_expressions_say_what_the_operators_do(prologue: str) -> None:
    """The oracle runs the operators, the kernel the expressions: here both, in Python."""
    kind = spec(prologue)
    inputs = [x.nan_to_num().float() for x in inputs_of(kind, 8, 16)]
    values = {i.name: x.reshape(1, -1) if i.shape == "per_column" else x
              for i, x in zip(kind.inputs, inputs, strict=True)}  # fmt: skip

    class tl:  # the functions of Triton's language that expressions use
        exp, sqrt, erf, abs = torch.exp, torch.sqrt, torch.erf, torch.abs
        PropagateNan = types.SimpleNamespace(ALL=None)

        @staticmethod
        def maximum(a: Any, b: Any, propagate_nan: Any) -> torch.Tensor:
            return torch.maximum(a, b)

        @staticmethod
        def minimum(a: Any, b: Any, propagate_nan: Any) -> torch.Tensor:
            return torch.minimum(a, b)

        @staticmethod
        def where(condition: Any, a: Any, b: Any) -> torch.Tensor:
            return torch.where(condition, torch.as_tensor(a), torch.as_tensor(b))

    names = {
        "tl": tl,
        "ISA": 0,
        "sigmoid": lambda x, isa: torch.sigmoid(x),
        "silu": lambda x, isa: torch.nn.functional.silu(x),
    }
    for s in kind.statements:
        values[s.name] = eval(s.code, names, values)
    expected = evaluate(kind, inputs_of(kind, 8, 16), 8, 16).float()
    torch.testing.assert_close(values[kind.statements[-1].name], expected, rtol=2e-3, atol=1e-3)
