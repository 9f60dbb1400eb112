"""The operators of a prologue as Triton expressions."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from nmcompile.codegen.evaluate import evaluate
from tests.kernels.specs import PROLOGUES, inputs_of, spec


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
