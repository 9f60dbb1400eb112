"""A product in one role, as a policy's conditions see it; what they say is matched once more."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Rules = Sequence[Mapping[str, Any]]

#: Matrix products and the position of their left operand.
LEFT = {
    aten.mm.default: 0,
    aten.addmm.default: 1,
    aten.bmm.default: 0,
    aten.baddbmm.default: 1,
    aten._grouped_mm.default: 0,
}
#: transformers' grouped product and its backward, by name: they are where it has been imported.
FALLBACK = "transformers.grouped_mm_fallback.default"
FALLBACK_BACKWARD = "transformers.grouped_mm_fallback_backward.default"
ROLES = {
    "activation": ("fprop", "wgrad"),
    "weight": ("fprop", "dgrad"),
    "gradient": ("dgrad", "wgrad"),
}


@dataclass
class Side:
    """One operand: its kind and value, the dimensions blocks run along, and what may prevent one.

    ``tiles`` are the two GEMM dimensions of a weight and their groups, for transposable masks.
    ``offsets``: where groups end along the one dimension; blocks start anew with each.
    """

    kind: str
    value: Tensor
    dims: tuple[int, ...]
    extent: int
    groups: int = 1
    tiles: tuple[tuple[int, int], int] | None = None
    in_place: bool = True
    offsets: Tensor | None = None


@dataclass
class Product:
    """One product in one role, as the policy sees it, and what it got.

    ``followed``: its role is known. It is not where a custom Function, a hook or an inner gradient
    multiplies: no forward product belongs to the autograd node that runs.
    """

    path: str
    module_class: str
    op: str
    role: str
    sizes: tuple[int, int, int, int]
    dtype: str
    kinds: tuple[str, str]
    rule: int | None = None
    pruned: str | None = None
    format: str | None = None
    method: str | None = None
    dims: tuple[int, ...] | None = None
    exact: bool = False
    followed: bool = True
    sides: tuple[Side, Side] | None = field(default=None, repr=False, compare=False)
    keep: Tensor | None = field(default=None, repr=False, compare=False)

    def key(self, sizes: bool = True) -> tuple[Any, ...]:
        """What a report's row must say of it."""
        where = (self.path, self.module_class, self.op, self.role, self.dtype)
        numbers = self.sizes if sizes else (0, 0, 0, 0)
        return (*where, *form(self.op, numbers, self.kinds, self.pruned, self.dims),
                self.rule, self.pruned, self.format, self.method)  # fmt: skip


def form(
    op: str, sizes: tuple[int, ...], kinds: tuple[str, str], pruned: str | None, dims: Any
) -> tuple[Any, ...]:
    """Sizes, kinds and the pruned dimension of a product; the same for it and its transpose.

    Autograd multiplies from the side that the strides of a tensor suggest, and eager PyTorch and
    the compiler do not always give it the same strides.
    """
    if op == "conv":
        return sizes, kinds, dims
    batch, m, n, k = sizes
    left = (kinds, (batch, m, n, k), dims and dims[-1])
    if pruned and dims:
        # The left operand is reduced over its last dimension, the right one over the one before.
        left = (kinds, (batch, m, n, k), dims[-1] + kinds.index(pruned))
    return min(left, (kinds[::-1], (batch, n, m, k), left[2]))


def matches(rule: Mapping[str, Any], p: Product) -> bool:
    """Whether the conditions of a rule hold for a product."""
    dense = rule.get("dense", False)
    layers = ("linear", "conv", "grouped")
    ops = _words(rule.get("op")) or ((*layers, "matmul") if dense else layers)
    roles = _words(rule.get("role")) or (
        ("fprop", "dgrad", "wgrad") if dense else ROLES[rule["prune"]]
    )
    batch, m, n, k = p.sizes
    return (
        p.op in ops
        and p.role in roles
        and (not rule.get("dtype") or p.dtype in _words(rule["dtype"]))
        and 2 * batch * m * n * k >= rule.get("min_flops", 0)
        and _fits(rule.get("module"), p.path)
        and _fits(rule.get("class"), p.module_class)
    )


def _words(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _fits(pattern: str | None, text: str) -> bool:
    if pattern is None:
        return True
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], text) is not None
    return fnmatch.fnmatchcase(text, pattern)
