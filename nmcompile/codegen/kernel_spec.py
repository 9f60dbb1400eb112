"""``KernelSpec``: everything that a compress kernel depends on, and nothing else.

It is the printer's only input and, with the package's sources, the name of the kernel's file. Sizes
and strides are arguments of the kernel, so that they are not part of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from nmcompile.codegen.pointwise import constant
from nmcompile.compressed.layouts import Layout

#: How an input ``[R, C]`` lies: all of it, one row ``[C]``, one column ``[R]``, one number; or
#: packed, of which the operand is read ("packed") or its keep mask ("kept").
Shape = Literal["full", "per_column", "per_row", "scalar", "packed", "kept"]
PACKED: tuple[Shape, ...] = ("packed", "kept")
Orientations = Literal["rows", "columns", "both", "dense"]

STORAGE = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Frozen):
    """One tensor that the prologue reads; ``source`` is the operator that it comes from.

    ``layout`` is that of a packed tensor, whose ``dtype`` is that of its values.
    """

    name: str
    shape: Shape
    dtype: str
    source: str
    layout: Layout | None = None


class Statement(_Frozen):
    """``name = target(*arguments)``, in float32.

    Arguments are names of inputs and statements (text) or numbers; ``expression`` is the operator
    in Triton, with a field for each argument.
    """

    name: str
    target: str
    expression: str
    arguments: tuple[str | bool | int | float, ...]

    @property
    def code(self) -> str:
        """The right-hand side in Triton."""
        return self.expression.format(
            *(a if isinstance(a, str) else constant(a) for a in self.arguments)
        )


class Operand(_Frozen):
    """What a kernel compresses: ``value``, the name of a statement or of an input.

    Attributes:
        value: the name.
        dims: orientations of the results: 1 compresses the operand along its columns, 0 its
            transpose; none where it is computed alone (``keep_dense``).
        keep_dense: whether the operand is also written as it is, for its other readers.
        alike: inputs of which what lies at the places that the operand keeps is packed as well
            (``nm::compress_like``; for MSE along the columns alone).
    """

    value: str
    dims: tuple[int, ...]
    keep_dense: bool = False
    alike: tuple[str, ...] = ()

    @property
    def orientations(self) -> Orientations:
        """Which tile function of ``codegen.device`` does it."""
        if len(self.dims) == 2:
            return "both"
        if not self.dims:
            return "dense"
        return "rows" if self.dims[0] == 1 else "columns"


class KernelSpec(_Frozen):
    """A kernel that computes operands ``[R, C]`` from its inputs and compresses them.

    Attributes:
        inputs, statements: the elementwise prologue.
        operands: what is compressed, all in the same orientations: one, or several that are
            computed from the same inputs and so from one read of them.
        n, m, method, layout: as of ``nm::compress``; of no meaning where nothing is compressed.
        dtype: of the operands, ``"bfloat16"`` or ``"float16"``.
    """

    inputs: tuple[Input, ...]
    statements: tuple[Statement, ...]
    operands: tuple[Operand, ...]
    n: int
    m: int
    method: Literal["mse", "mvue"]
    layout: Layout
    dtype: str

    @property
    def dims(self) -> tuple[int, ...]:
        """The orientation of each packed result."""
        return tuple(dim for operand in self.operands for dim in operand.dims)

    @property
    def alike(self) -> tuple[str, ...]:
        """The inputs of which a part is packed, in the order of those results."""
        return tuple(name for operand in self.operands for name in operand.alike)

    @property
    def crowded(self) -> bool:
        """Whether it unpacks more than two tensors, which takes a program's registers."""
        return sum(i.shape in PACKED for i in self.inputs) > 2

    @property
    def dense_results(self) -> int:
        """How many operands are also written as they are."""
        return sum(operand.keep_dense for operand in self.operands)

    @property
    def orientations(self) -> Orientations:
        """Which tile function of ``codegen.device`` does it."""
        return self.operands[0].orientations

    def prologue(self, operand: Operand) -> tuple[Statement, ...]:
        """The statements that an operand needs, in order; none where it is an input."""
        wanted, found = {operand.value}, []
        for statement in reversed(self.statements):
            if statement.name in wanted:
                found.append(statement)
                wanted.update(a for a in statement.arguments if isinstance(a, str))
        return tuple(reversed(found))

    def inputs_of(self, operand: Operand) -> tuple[Input, ...]:
        """The inputs that an operand is computed from."""
        read = {operand.value, *operand.alike}.union(*(s.arguments for s in self.prologue(operand)))
        return tuple(i for i in self.inputs if i.name in read)

    @property
    def storage(self) -> str:
        """The operand's type as ``codegen.device`` names it."""
        return STORAGE[getattr(torch, self.dtype)]

    @property
    def name(self) -> str:
        """A readable name, unique up to the digest."""
        if not self.dims:
            return f"compute_{self.word}"
        return f"compress_{self.orientations}_{self.method}_{self.n}_{self.m}_{self.word}"

    @property
    def word(self) -> str:
        """The operators that the operands are results of."""
        targets = {s.name: s.target.split(".")[1] for s in self.statements}
        return "_".join(targets.get(o.value, "copy") for o in self.operands)

    @property
    def digest(self) -> str:
        """Of the content; 16 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        """Of what tells kernels apart as a rule: a spec is looked up at every launch."""
        kind = (
            self.dims,
            self.alike,
            self.dense_results,
            self.n,
            self.method,
            self.layout,
            self.dtype,
        )
        return hash((*kind, *[i.shape for i in self.inputs], *[s.target for s in self.statements]))

    def to_json(self) -> str:
        """The spec as one line of JSON, an argument of ``nm::fused_compress``."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> KernelSpec:
        """The inverse of ``to_json``."""
        return cls.model_validate_json(text)


def computing(
    inputs: tuple[Input, ...],
    statements: tuple[Statement, ...],
    value: str,
    dtype: torch.dtype,
    *,
    keep_dense: bool,
    layout: Layout = Layout.ROW_MAJOR,
) -> KernelSpec:
    """The spec of an operand that is not compressed, but computed: ``Operand.dims`` is empty."""
    return KernelSpec(
        inputs=inputs,
        statements=statements,
        operands=(Operand(value=value, dims=(), keep_dense=keep_dense),),
        n=2,
        m=4,
        method="mse",
        layout=layout,
        dtype=_name(dtype),
    )


@functools.lru_cache(maxsize=1024)
def identity(
    dtype: torch.dtype, dims: tuple[int, ...], n: int, m: int, method: str, layout: str
) -> KernelSpec:
    """The spec of ``nm::compress`` itself: no prologue."""
    x = Input(name="x", shape="full", dtype=_name(dtype), source="x")
    return KernelSpec(
        inputs=(x,),
        statements=(),
        operands=(Operand(value="x", dims=dims),),
        n=n,
        m=m,
        method=method,  # type: ignore[arg-type]
        layout=Layout(layout),
        dtype=_name(dtype),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
