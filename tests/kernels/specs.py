"""Kernel specs that the tests run, one for each thing that a generated kernel can do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from nmcompile.codegen.kernel_spec import PACKED, Input, KernelSpec, Operand, Statement
from nmcompile.codegen.pointwise import EXPRESSIONS
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat

aten = torch.ops.aten


def statement(name: str, target: Any, *arguments: Any) -> Statement:
    return Statement(
        name=name, target=str(target), expression=EXPRESSIONS[target], arguments=arguments
    )


def given(name: str, shape: Any = "full", dtype: str = "float16") -> Input:
    layout = Layout.CUSPARSELT_SM90 if shape in PACKED else None
    return Input(name=name, shape=shape, dtype=dtype, source="input", layout=layout)


#: Inputs and statements of each prologue.
PROLOGUES: dict[str, tuple[tuple[Input, ...], tuple[Statement, ...]]] = {
    "copy": ((given("x"),), ()),
    "silu_mul_bias": (
        (given("gate"), given("up"), given("bias", "per_column")),
        (
            statement("activated", aten.silu.default, "gate"),
            statement("product", aten.mul.Tensor, "activated", "up"),
            statement("result", aten.add.Tensor, "product", "bias"),
        ),
    ),
    "gelu_tanh": (
        (given("x"),),
        (
            statement("square", aten.mul.Tensor, "x", "x"),
            statement("inner", aten.mul.Tensor, "square", 0.0356774081),
            statement("more", aten.add.Tensor, "inner", 0.7978845608),
            statement("z", aten.mul.Tensor, "x", "more"),
            statement("t", aten.tanh.default, "z"),
            statement("one", aten.add.Tensor, "t", 1.0),
            statement("both", aten.mul.Tensor, "x", "one"),
            statement("result", aten.mul.Tensor, "both", 0.5),
        ),
    ),
    "dropout_residual": (
        (given("x"), given("mask", dtype="bool"), given("skip", dtype="float32")),
        (
            statement("scaled", aten.mul.Tensor, "x", 1.25),
            statement("kept", aten.where.self, "mask", "scaled", 0.0),
            statement("result", aten.add.Tensor, "kept", "skip"),
        ),
    ),
    "scale_rows": (
        (given("x"), given("row", "per_row", "float32"), given("scale", "scalar", "float32")),
        (
            statement("scaled", aten.mul.Tensor, "x", "row"),
            statement("shifted", aten.sub.Tensor, "scaled", "scale"),
            statement("positive", aten.relu.default, "shifted"),
            statement("result", aten.neg.default, "positive"),
        ),
    ),
    "functions": (
        (given("x"), given("y")),
        (
            statement("size", aten.abs.default, "x"),
            statement("minus", aten.neg.default, "size"),
            statement("power", aten.exp.default, "minus"),
            statement("root", aten.sqrt.default, "size"),
            statement("above", aten.add.Tensor, "size", 1.0),
            statement("inverse_root", aten.rsqrt.default, "above"),
            statement("inverse", aten.reciprocal.default, "above"),
            statement("quotient", aten.div.Tensor, "y", "above"),
            statement("high", aten.maximum.default, "power", "root"),
            statement("low", aten.minimum.default, "inverse_root", "inverse"),
            statement("sum", aten.add.Tensor, "high", "low"),
            statement("result", aten.sub.Tensor, "sum", "quotient"),
        ),
    ),
    "comparisons": (
        (given("x"), given("y")),
        (
            statement("error", aten.erf.default, "x"),
            statement("gate", aten.sigmoid.default, "x"),
            statement("positive", aten.gt.Scalar, "x", 0),
            statement("not_small", aten.ge.Scalar, "x", -0.5),
            statement("small", aten.lt.Scalar, "x", 0.5),
            statement("other", aten.logical_not.default, "positive"),
            statement("chosen", aten.where.self, "other", "error", "y"),
            statement("again", aten.where.self, "not_small", "chosen", "gate"),
            statement("third", aten.where.self, "small", "again", "x"),
            statement("scaled", aten.mul.Scalar, "third", 1.5),
            statement("moved", aten.add.Scalar, "scaled", 0.25),
            statement("shared", aten.div.Scalar, "moved", 3.0),
            statement("result", aten.sub.Scalar, "shared", 0.125),
        ),
    ),
    "relu_backward": (
        (given("dy"), given("y")),
        (
            statement("off", aten.le.Scalar, "y", 0),
            statement("result", aten.where.self, "off", 0.0, "dy"),
        ),
    ),
    "masked_packed": (
        (given("dy"), given("mask", "kept"), given("gate", "packed")),
        (
            statement("masked", aten.where.self, "mask", "dy", -1.0),
            statement("result", aten.mul.Tensor, "masked", "gate"),
        ),
    ),
    "packed_alone": (
        (given("mask", "kept"), given("gate", "packed"), given("up", "packed")),
        (
            statement("both", aten.mul.Tensor, "gate", "up"),
            statement("result", aten.where.self, "mask", "both", -1.0),
        ),
    ),
}
#: Without a whole input, kernels know the sizes of operands alone that need no padding.
UNPADDED = (128, 128)
SIZES = [(64, 128), (40, 72), (3, 5)]


def spec(
    prologue: str = "copy",
    dims: tuple[int, ...] = (1,),
    method: Any = "mse",
    format: tuple[int, int] = (2, 4),
    layout: Layout = Layout.CUSPARSELT_SM90,
    dtype: str = "float16",
    keep_dense: bool = True,
) -> KernelSpec:
    inputs, statements = PROLOGUES[prologue]
    if dtype != "float16":
        swap = {"float16": dtype}
        inputs = tuple(i.model_copy(update={"dtype": swap.get(i.dtype, i.dtype)}) for i in inputs)
    value = statements[-1].name if statements else inputs[0].name
    operand = Operand(value=value, dims=dims, keep_dense=keep_dense and bool(statements))
    return KernelSpec(
        inputs=laid(inputs, layout),
        statements=statements,
        operands=(operand,),
        n=format[0],
        m=format[1],
        method=method,
        layout=layout,
        dtype=dtype,
    )


def laid(inputs: tuple[Input, ...], layout: Layout) -> tuple[Input, ...]:
    """The inputs, those that are packed in this layout."""
    return tuple(i.model_copy(update={"layout": layout}) if i.layout else i for i in inputs)


def all_specs() -> Iterator[KernelSpec]:
    """Every orientation, method, format and layout without a prologue; every prologue once."""
    every_dims = [(1,), (0,), (1, 0)]
    for dims, method, format in itertools.product(every_dims, ("mse", "mvue"), ((2, 4), (1, 2))):
        yield spec(dims=dims, method=method, format=format)
    for layout in [layout for layout in Layout if not layout.opaque]:
        yield spec(dims=(1, 0), layout=layout)
        yield spec(dims=(1, 0), method="mvue", layout=layout)
    yield from (s for _, s in fused_specs())


def fused_specs() -> Iterator[tuple[str, KernelSpec]]:
    """Every prologue once, by name; one more that keeps no dense result."""
    every_dims = [(1,), (0,), (1, 0)]
    with_sizes = [name for name in PROLOGUES if name != "packed_alone"]
    for k, name in enumerate(with_sizes):
        yield name, spec(name, dims=every_dims[k % 3], method=("mse", "mvue")[k % 2])
    yield (
        "silu_mul_bias alone",
        spec("silu_mul_bias", dims=(0, 1), method="mvue", keep_dense=False),
    )
    yield "masked_packed, computed alone", spec("masked_packed", dims=())
    kept = spec("silu_mul_bias")
    (operand,) = kept.operands
    both = operand.model_copy(update={"alike": ("gate", "up")})
    yield "silu_mul_bias at the kept places", kept.model_copy(update={"operands": (both,)})
    yield "masked_packed in both", spec("masked_packed", dims=(1, 0), method="mvue")
    for method in ("mse", "mvue"):
        yield f"two operands, {method}", two_operands(method)


def two_operands(method: str) -> KernelSpec:
    """The gradients of silu(gate) * up: two operands of three inputs, one written densely too."""
    inputs = (given("gate"), given("up"), given("dy"))
    statements = (
        statement("gated", aten.sigmoid.default, "gate"),
        statement("activated", aten.mul.Tensor, "gate", "gated"),
        statement("dup", aten.mul.Tensor, "dy", "activated"),
        statement("rest", aten.sub.Tensor, 1.0, "gated"),
        statement("more", aten.mul.Tensor, "gate", "rest"),
        statement("slope", aten.add.Tensor, "more", 1.0),
        statement("outer", aten.mul.Tensor, "dy", "up"),
        statement("inner", aten.mul.Tensor, "outer", "gated"),
        statement("dgate", aten.mul.Tensor, "inner", "slope"),
    )
    return spec(dims=(1, 0), method=method).model_copy(
        update={
            "inputs": inputs,
            "statements": statements,
            "operands": (
                Operand(value="dup", dims=(1, 0)),
                Operand(value="dgate", dims=(0, 1), keep_dense=True),
            ),
        }
    )


def inputs_of(spec: KernelSpec, rows: int, columns: int, seed: int = 0) -> list[torch.Tensor]:
    """Values with ties, zeros, -0.0 and, in the first input of a copy, inf and NaN."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "full": (rows, columns),
        "per_column": (columns,),
        "per_row": (rows, 1),
        "scalar": (1,),
        **dict.fromkeys(PACKED, (rows, columns)),
    }
    values = []
    for i in spec.inputs:
        x = torch.randn(shapes[i.shape], generator=g)
        if i.shape == "full":
            flat = x.view(-1)
            flat[::7], flat[3::11], flat[4::11], flat[5::13] = 0, 1, -1, -0.0
            if not spec.statements:
                flat[1::97], flat[2::101] = torch.nan, torch.inf
        if i.layout is not None:
            x = x.to(getattr(torch, i.dtype))
            values.append(packing.compress(x, None, 0, NMFormat(2, 4), 1, "mse", i.layout))
            continue
        values.append((x > 0) if i.dtype == "bool" else x.to(getattr(torch, i.dtype)))
    return values
