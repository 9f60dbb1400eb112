"""The elementwise operators that a compress kernel can compute on the way, as Triton expressions.

A prologue is computed in float32 and rounded once, at its end, as in Inductor's own fused kernels;
conversions between floating types in between are therefore nothing. ``{0}``, ``{1}``, ... are the
arguments. Expressions use operators, functions of ``tl`` and those of ``FUNCTIONS``, which take the
kernel's ISA.
"""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

#: Operator to expression. Arguments that an operator may leave out have their defaults here.
EXPRESSIONS: dict[Any, str] = {
    aten.add.Tensor: "{0} + {1}",
    aten.sub.Tensor: "{0} - {1}",
    aten.mul.Tensor: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.sub.Scalar: "{0} - {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.reciprocal.default: "1.0 / {0}",
    aten.exp.default: "tl.exp({0})",
    aten.erf.default: "tl.erf({0})",
    aten.sigmoid.default: "sigmoid({0}, ISA)",
    aten.tanh.default: "2.0 * sigmoid(2.0 * {0}, ISA) - 1.0",
    aten.silu.default: "silu({0}, ISA)",
    aten.relu.default: "tl.where({0} <= 0.0, 0.0, {0})",  # a NaN stays
    aten.abs.default: "tl.abs({0})",
    aten.sqrt.default: "tl.sqrt({0})",
    aten.rsqrt.default: "1.0 / tl.sqrt({0})",
    aten.maximum.default: "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    aten.minimum.default: "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    aten.where.self: "tl.where({0} != 0.0, {1}, {2})",
    aten.gt.Scalar: "tl.where({0} > {1}, 1.0, 0.0)",
    aten.ge.Scalar: "tl.where({0} >= {1}, 1.0, 0.0)",
    aten.lt.Scalar: "tl.where({0} < {1}, 1.0, 0.0)",
    aten.le.Scalar: "tl.where({0} <= {1}, 1.0, 0.0)",
    aten.logical_not.default: "tl.where({0} == 0.0, 1.0, 0.0)",
}

#: Functions of ``codegen.device.functions`` that expressions call.
FUNCTIONS = ("sigmoid", "silu")

#: Those with boolean results, which are 0 and 1 here.
COMPARISONS = (
    aten.gt.Scalar,
    aten.ge.Scalar,
    aten.lt.Scalar,
    aten.le.Scalar,
    aten.logical_not.default,
)


def constant(value: float | bool) -> str:
    """A Python number as a float32 literal of Triton."""
    number = float(value)
    if number != number:
        return "float('nan')"
    if number in (float("inf"), float("-inf")):
        return f"float('{number}')"
    return repr(number) if number >= 0 else f"({number!r})"


def pow_expression(exponent: float) -> str | None:
    """x ** exponent for the exponents that gradients of activations have."""
    powers = {
        1.0: "{0}",
        2.0: "{0} * {0}",
        3.0: "{0} * {0} * {0}",
        0.5: "tl.sqrt({0})",
        -1.0: "1.0 / {0}",
    }
    return powers.get(float(exponent))
