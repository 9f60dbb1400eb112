"""The oracle of a kernel's prologue."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.launch import operand_shape
from tests.passes.fused import compress, fused, half


def test_the_oracle_of_a_spec_computes_in_float32_and_rounds_once() -> None:
    def f(x: Any, y: Any) -> Any:
        return compress(F.silu(x) * y + x)

    x, y = half(8, 32), half(8, 32, seed=2)
    _, (spec,) = fused(f, x, y)
    values = [x, y]
    expected = (F.silu(x.float()) * y.float() + x.float()).to(torch.bfloat16)
    actual = evaluate(spec, values, *operand_shape(spec, values))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-6)
