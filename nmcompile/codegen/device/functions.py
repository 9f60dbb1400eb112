"""Activation functions for prologues, in float32, with the fewest special-function instructions.

``ex2.approx.ftz`` and ``rcp.approx.ftz`` are within 2 and 1 units in the last place (PTX ISA,
chapter 9.7.3): far inside the rounding of the 16-bit result. Triton's own ``exp`` and division
spend several more instructions an element on denormal numbers and on the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x, ISA: tl.constexpr):
    """1 / (1 + exp(-x)): two special-function instructions."""
    scaled = x * -1.4426950408889634
    if ISA >= 80:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [scaled], tl.float32, True, 1
        )
        result = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1
        )
    else:
        result = 1.0 / (1.0 + tl.exp2(scaled))
    return result


@triton.jit
def silu(x, ISA: tl.constexpr):
    """x * sigmoid(x)."""
    return x * sigmoid(x, ISA)
