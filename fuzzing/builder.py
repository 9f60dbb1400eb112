"""Builds a network by executing each statement as it is added: shapes are seen, never derived."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fuzzing.functions import functions
from fuzzing.network import DTYPES, Block, Input, Network, Statement

NAMES = {dtype: name for name, dtype in DTYPES.items()}
SIZES = (1, 2, 3, 4, 5, 6, 8, 8, 12, 16, 20)
MAX_ELEMENTS = 2048
MAX_MAGNITUDE = 30.0


class Scope:
    """The values of one module's forward while it is written.

    Attributes:
        random: decides everything.
        values: name -> tensor, as computed so far.
        statements: what has been accepted.
    """

    def __init__(self, chance: random.Random, prefix: str, parent: Scope | None = None) -> None:
        self.random = chance
        self.prefix = prefix
        self.values: dict[str, Tensor] = {}
        self.statements: list[Statement] = []
        self.uses: dict[str, int] = {}
        self.module = nn.Module()
        self.blocks: dict[str, type[nn.Module]] = parent.blocks if parent else {}
        self._count = 0

    def choose(self, *items: Any) -> Any:
        return self.random.choice(items)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def size(self, limit: int = 20) -> int:
        return self.random.choice([s for s in SIZES if s <= limit])

    def name(self, stem: str) -> str:
        """A fresh attribute's name."""
        self._count += 1
        return f"{stem}{self._count}"

    def pick(self, wanted: Callable[[Tensor], bool] = lambda x: True) -> str | None:
        """A floating-point value with the property, newer and unused ones more often."""
        names = [n for n, x in self.values.items() if x.is_floating_point() and wanted(x)]
        if not names:
            return None
        weights = [(1 + i) * (3.0 if not self.uses[n] else 1.0) for i, n in enumerate(names)]
        return str(self.random.choices(names, weights)[0])

    def add(
        self, op: str, code: str, *inputs: str, held: tuple[tuple[str, str], ...] = ()
    ) -> str | None:
        """Append a statement if it runs and its value is harmless; the name of its value."""
        out = f"{self.prefix}{len(self.statements) + 1}"
        # What a statement does not read may be dead code, and must become an output.
        inputs = inputs[: 1 + max((int(i) for i in re.findall(r"\{(\d+)\}", code)), default=-1)]
        statement = Statement(op, out, inputs, code, held)
        scope: dict[str, Any] = {**NAMESPACE, **DTYPES, **self.blocks, **self.values}
        scope["self"] = self.module
        versions = {n: v._version for n, v in self.values.items()}
        new = [h for h in held if not hasattr(self.module, h[0])]
        for attribute, expression in new:
            setattr(self.module, attribute, eval(expression, scope))
        try:
            exec(statement.line(), scope)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            scope[out] = None
        value = scope[out]
        mutates = any(v._version != versions[n] for n, v in self.values.items())
        assert value is not None or not mutates, f"{statement.line()} failed half way"
        if not isinstance(value, Tensor) or not (mutates or _harmless(value)):
            for attribute, _ in new:
                delattr(self.module, attribute)
            return None
        self.values[out] = value
        self.uses[out] = 0
        for used in inputs:
            self.uses[used] += 1
        self.statements.append(statement)
        return out

    def input(self, name: str, value: Tensor) -> None:
        self.values[name] = value
        self.uses[name] = 0

    def unused(self) -> list[str]:
        """Values that no statement reads."""
        return [name for name, count in self.uses.items() if count == 0]


NAMESPACE = {"torch": torch, "nn": nn, "F": F, "checkpoint": checkpoint, **functions()}


def _harmless(value: Tensor) -> bool:
    if value.numel() > MAX_ELEMENTS or value.dim() > 6:
        return False
    if value.numel() == 0 or not value.is_floating_point():
        return True
    largest = float(value.detach().abs().max())
    return largest <= MAX_MAGNITUDE


def _overlaps(x: Tensor) -> bool:
    """Whether two elements are one place of memory."""
    places = torch.arange(x.untyped_storage().nbytes() // x.element_size())
    return places.as_strided(x.shape, x.stride()).unique().numel() < x.numel()


def finish(scope: Scope, inputs: list[Input], blocks: list[Block], seed: int) -> Network | None:
    """Every unused value becomes an output, so that nothing is dead code; None without any."""
    taken = {i.name for i in inputs}
    for name in scope.unused():
        if name not in taken and _overlaps(scope.values[name]):
            # AOTAutograd copies a tangent into strides like these, which overwrites some of it.
            scope.add("contiguous", "{out} = {0}.contiguous()", name)
    # Autograd does not begin at an output without elements, a compiler does.
    ends = [n for n in scope.unused() if n not in taken and scope.values[n].numel()]
    if not ends:
        return None
    return Network(
        inputs=tuple(inputs),
        statements=tuple(scope.statements),
        outputs=tuple(ends),
        blocks=tuple(blocks),
        training=scope.chance(0.8),
        seed=seed,
    ).live()
