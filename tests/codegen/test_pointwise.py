"""The operators of a prologue as Triton expressions."""

from __future__ import annotations

import math
import re
import string
import types
from typing import Any

import pytest
import torch

from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.pointwise import (
    COMPARISONS,
    EXPRESSIONS,
    FUNCTIONS,
    constant,
    pow_expression,
)
from tests.kernels.specs import PROLOGUES, inputs_of, spec


def is_dense(prologue: str) -> bool:
    """What is packed is no matrix of the operand's size; the tests of kernels read it."""
    return not any(i.shape in ("packed", "kept") for i in spec(prologue).inputs)


@pytest.mark.parametrize("prologue", [p for p in PROLOGUES if p != "copy" and is_dense(p)])
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
    expected = evaluate(kind, inputs_of(kind, 8, 16), 8, 16)[0].float()
    torch.testing.assert_close(values[kind.statements[-1].name], expected, rtol=2e-3, atol=1e-3)


def test_every_operator_is_in_a_prologue_that_tests_run() -> None:
    run = {s.target for _, statements in PROLOGUES.values() for s in statements}
    assert run == set(map(str, EXPRESSIONS))


@pytest.mark.parametrize("operator", EXPRESSIONS, ids=str)
def test_an_expression_has_a_field_for_each_argument_and_calls_what_is_there(operator: Any) -> None:
    expression = EXPRESSIONS[operator]
    fields = {name for _, name, _, _ in string.Formatter().parse(expression) if name is not None}
    # alpha is 1 where an operator becomes an expression.
    positional = [a for a in operator._schema.arguments if not a.kwarg_only and a.name != "alpha"]
    assert fields == set(map(str, range(len(positional))))
    called = set(re.findall(r"([\w.]+)\(", expression))
    assert {name for name in called if not name.startswith("tl.")} <= set(FUNCTIONS)


@pytest.mark.parametrize("operator", EXPRESSIONS, ids=str)
def test_comparisons_are_those_with_boolean_results(operator: Any) -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    by_type = {"Tensor": x, "number": 0.5}
    arguments = [
        by_type["number" if "Scalar" in operator._overloadname and i else "Tensor"]
        for i, a in enumerate(operator._schema.arguments)
        if not a.kwarg_only
    ]
    if operator is torch.ops.aten.where.self:
        arguments[0] = x > 0
    assert (operator(*arguments).dtype == torch.bool) == (operator in COMPARISONS)


@pytest.mark.parametrize(
    "value", [0, 1, -2, 0.5, -0.5, 1e-30, -3e38, 0.1, True, False, math.inf, -math.inf, math.nan]
)
@pytest.mark.parametrize("template", ["{0}", "-{0}", "3.0 - {0}", "2.0 * {0}"])
def test_a_literal_is_its_number_wherever_it_stands(value: float, template: str) -> None:
    expected = eval(template.format("v"), {"v": float(value)})
    assert repr(eval(template.format(constant(value)))) == repr(expected)


@pytest.mark.parametrize("exponent", [1, 2, 2.0, 3, 0.5, -1])
def test_powers(exponent: float) -> None:
    expression = pow_expression(exponent)
    assert expression is not None
    code = expression.format("x").replace("tl.", "math.")
    assert eval(code, {"x": 1.7, "math": math}) == pytest.approx(1.7**exponent)


@pytest.mark.parametrize("exponent", [0, 4, 1.5, -2])
def test_other_powers_have_no_expression(exponent: float) -> None:
    assert pow_expression(exponent) is None
