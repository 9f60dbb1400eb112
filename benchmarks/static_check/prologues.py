"""The elementwise prologues of the checked kernels, as the compiler hands them to the printer.

They are what Inductor's decompositions make of ``torch.nn.functional``: a test traces these
functions and holds the statements against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nmcompile.codegen.kernel_spec import Input, Operand, Statement
from nmcompile.codegen.pointwise import EXPRESSIONS

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Prologue:
    """What a kernel computes before it compresses.

    Attributes:
        inputs: names of the tensors ``[R, C]`` that it reads, all of the operand's type.
        calls: name, operator and arguments of each statement; the last one is the operand.
        keep_dense: whether the operand is also written as it is.
    """

    inputs: tuple[str, ...] = ("x",)
    calls: tuple[tuple[Any, ...], ...] = ()
    keep_dense: bool = False

    def inputs_of(self, dtype: str) -> tuple[Input, ...]:
        """The kernel's inputs in a type such as "bfloat16"."""
        source = "input" if self.calls else "x"
        return tuple(
            Input(name=name, shape="full", dtype=dtype, source=source) for name in self.inputs
        )

    def operand(self, dims: tuple[int, ...]) -> Operand:
        """What the kernel compresses, in the given orientations."""
        value = self.calls[-1][0] if self.calls else self.inputs[0]
        return Operand(value=value, dims=dims, keep_dense=self.keep_dense)

    @property
    def statements(self) -> tuple[Statement, ...]:
        """The kernel's statements."""
        return tuple(
            Statement(name=name, target=str(op), expression=EXPRESSIONS[op], arguments=arguments)
            for name, op, *arguments in self.calls
        )


#: gelu(x, approximate="tanh").
GELU = Prologue(
    ("input_0",),
    (
        ("mul_0", aten.mul.Tensor, "input_0", "input_0"),
        ("mul_1", aten.mul.Tensor, "mul_0", "input_0"),
        ("mul_2", aten.mul.Tensor, "mul_1", 0.044715),
        ("add_0", aten.add.Tensor, "input_0", "mul_2"),
        ("mul_3", aten.mul.Tensor, "add_0", 0.7978845608028654),
        ("mul_4", aten.mul.Tensor, "input_0", 0.5),
        ("tanh_0", aten.tanh.default, "mul_3"),
        ("add_1", aten.add.Tensor, "tanh_0", 1),
        ("mul_5", aten.mul.Tensor, "mul_4", "add_1"),
    ),
)
#: silu(gate) * up, which the weight gradient of the next layer reads unpruned.
SWIGLU = Prologue(
    ("input_0", "input_1"),
    (
        ("neg_0", aten.neg.default, "input_0"),
        ("exp_0", aten.exp.default, "neg_0"),
        ("add_0", aten.add.Tensor, "exp_0", 1),
        ("div_0", aten.div.Tensor, "input_0", "add_0"),
        ("mul_0", aten.mul.Tensor, "div_0", "input_1"),
    ),
    keep_dense=True,
)
PROLOGUES = {"identity": Prologue(), "gelu": GELU, "swiglu": SWIGLU}
