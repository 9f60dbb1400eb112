"""A network as data: small statements over earlier values, rendered to a readable Python module.

The statements are a representation of our own and not Hypothesis strategies, because a statement
that names its values can be deleted, cut or replaced on its own while the rest stays as it is, and
the result is a module that a person can run.
"""

from __future__ import annotations

import dataclasses
import itertools
import linecache
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fuzzing.functions import used

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


@dataclass(frozen=True)
class Statement:
    """``out`` computed from ``inputs``.

    Attributes:
        op: what it is, for people and for counting.
        out: the name of its value.
        inputs: the names of the values that it reads.
        code: one line; ``{0}``, ``{1}`` are the inputs, ``{out}`` is the value.
        held: attributes of the module that the line reads: (name, expression).
    """

    op: str
    out: str
    inputs: tuple[str, ...]
    code: str
    held: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        return self.code.format(*self.inputs, out=self.out)


@dataclass(frozen=True)
class Input:
    """A tensor that the network is called with; ``code`` makes it from the generator ``g``."""

    name: str
    code: str
    requires_grad: bool = False


@dataclass(frozen=True)
class Block:
    """A module of the network with statements of its own, from ``inputs`` to ``output``.

    ``region``: its forward is a nested region, which is compiled once for all its calls.
    """

    name: str
    inputs: tuple[str, ...]
    statements: tuple[Statement, ...]
    output: str
    region: bool = False


@dataclass(frozen=True)
class Network:
    """Inputs, blocks, statements and outputs; ``training`` as of ``nn.Module.train``."""

    inputs: tuple[Input, ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    blocks: tuple[Block, ...] = ()
    training: bool = True
    seed: int = 0

    def render(self) -> str:
        """The network as a module with ``Net`` and ``inputs()``."""
        rest = "\n".join([*self._classes(), "", *self._inputs()]) + "\n"
        return "\n".join([*_HEADER, *used(rest), rest])

    def _classes(self) -> list[str]:
        lines = []
        for b in self.blocks:
            lines += ["", *module_lines(b.name, b.inputs, b.statements, b.output, b.region)]
        names = tuple(i.name for i in self.inputs)
        return [*lines, "", *module_lines("Net", names, self.statements, ", ".join(self.outputs))]

    def _inputs(self) -> list[str]:
        lines = ["", "def inputs():", f"    g = torch.Generator().manual_seed({self.seed})"]
        for i in self.inputs:
            lines.append(f"    {i.name} = {i.code}")
        args = ", ".join(
            f"{i.name}.requires_grad_()" if i.requires_grad else i.name for i in self.inputs
        )
        return [*lines, f"    return [{args}]"]

    def live(self) -> Network:
        """Without statements, inputs and blocks that no output needs."""
        statements = live_statements(self.statements, self.outputs)
        used = {i for s in statements for i in s.inputs} | set(self.outputs)
        called = {expression for s in statements for _, expression in s.held}
        blocks = tuple(
            dataclasses.replace(b, statements=live_statements(b.statements, (b.output,)))
            for b in self.blocks
            if f"{b.name}()" in called
        )
        inputs = tuple(i for i in self.inputs if i.name in used)
        return dataclasses.replace(self, inputs=inputs, statements=statements, blocks=blocks)

    @property
    def ops(self) -> list[str]:
        """Every statement's op."""
        every = itertools.chain(self.statements, *(b.statements for b in self.blocks))
        return [s.op for s in every]


@dataclass(frozen=True)
class Written:
    """A network that is text already: a find's script."""

    text: str
    training: bool
    seed: int

    def render(self) -> str:
        return self.text


def live_statements(
    statements: tuple[Statement, ...], outputs: Iterable[str]
) -> tuple[Statement, ...]:
    needed = set(outputs)
    kept = []
    for s in reversed(statements):
        # An operation in place is needed by whoever reads the tensor later.
        if s.out in needed or ("_(" in s.code and needed & set(s.inputs)):
            needed.update(s.inputs)
            kept.append(s)
    return tuple(reversed(kept))


def module_lines(
    name: str,
    inputs: tuple[str, ...],
    statements: tuple[Statement, ...],
    output: str,
    region: bool = False,
) -> list[str]:
    held = {attribute: code for s in statements for attribute, code in s.held}
    return [
        "",
        f"class {name}(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        self.{attribute} = {code}" for attribute, code in held.items()),
        "",
        *(["    @torch.compiler.nested_compile_region"] if region else []),
        f"    def forward(self, {', '.join(inputs)}):",
        *(f"        {s.line()}" for s in statements),
        # A region may not give what it was given, nor a view of that.
        f"        return {output}{'.clone()' if region else ''}",
    ]


_HEADER = [
    "import torch",
    "from torch import nn",
    "from torch.nn import functional as F",
    "from torch.utils.checkpoint import checkpoint",
    "",
    *(f"{name} = {dtype}" for name, dtype in DTYPES.items()),
]

_numbers = itertools.count()


@dataclass
class Program:
    """A rendering that has been executed: ``model`` and its ``inputs``."""

    model: nn.Module
    inputs: list[Tensor]


def load(network: Network | Written, wide: bool = False, checkpoints: bool = True) -> Program:
    """Execute the rendering; parameters and inputs follow from the network alone.

    Args:
        network: what to run.
        wide: everything in float64, with the same parameters and inputs (rounded to the dtypes
            that the network has).
        checkpoints: whether checkpointed blocks are checkpointed.
    """
    native = _build(network, checkpoints, False)
    if not wide:
        return native
    program = _build(network, checkpoints, True)
    program.model.load_state_dict(native.model.state_dict())
    program.inputs = [
        (x.detach().double() if x.is_floating_point() else x).requires_grad_(x.requires_grad)
        for x in native.inputs
    ]
    return program


def _build(network: Network | Written, checkpoints: bool, wide: bool) -> Program:
    text = network.render()
    if wide:
        for name, dtype in DTYPES.items():
            text = text.replace(f"{name} = {dtype}\n", f"{name} = torch.float64\n")
    if not checkpoints:
        text = text.replace("import checkpoint\n", "import checkpoint\n" + _NO_CHECKPOINT)
    number = next(_numbers)
    file = f"<network {number}>"
    linecache.cache.pop(f"<network {number - 100}>", None)
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    module: Any = ModuleType("network")
    exec(compile(text, file, "exec"), module.__dict__)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network.seed)
        model = module.Net().train(network.training)
        return Program(model, module.inputs())


_NO_CHECKPOINT = "checkpoint = lambda function, *args, **_: function(*args)\n"
