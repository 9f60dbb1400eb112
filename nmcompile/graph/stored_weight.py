"""Which parameter a product's weight is as it lies in the model, and who else reads it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.aten import ALIASES, CONVERSIONS, TRANSPOSES, aten, permutation
from nmcompile.graph.module_path import module_path
from nmcompile.graph.operand_kinds import Kinds

_SAME = frozenset([*ALIASES, *CONVERSIONS, *TRANSPOSES, aten.detach.default])


@dataclass(frozen=True)
class StoredWeight:
    """The input that an operand is, transposed or cast at most.

    ``order`` has for each dimension of the operand that of the input. ``obstacle`` says why a mask
    of the operand cannot be written into the input; empty where it can. ``computed``: since the
    operand is more than that, and ``node`` what computes it.
    """

    node: fx.Node
    order: tuple[int, ...]
    obstacle: str = ""
    computed: bool = False

    @classmethod
    def of(cls, operand: fx.Node, readers: Collection[fx.Node], kinds: Kinds) -> StoredWeight:
        """Follow an operand back to the input that holds it.

        Args:
            operand: the weight of a forward product.
            readers: the products of the forward that read it under the same mask.
            kinds: of every node.
        """
        order = tuple(range(operand.meta["val"].dim()))
        node, obstacle = operand, ""
        while node.op == "call_function":
            if node.target not in _SAME or node.meta["val"].dim() != len(order):
                obstacle = f"it is computed by {_name(node)}{_where(node)}"
                break
            (before,) = node.all_input_nodes[:1]
            if node.target in ALIASES and before.meta["val"].shape != node.meta["val"].shape:
                obstacle = f"it is read in another shape{_where(node)}"
                break
            swapped = permutation(node)
            order = order if swapped is None else tuple(swapped[d] for d in order)
            node = before
        other = "" if obstacle else _other_reader(node, readers, kinds)
        return cls(node, order, obstacle or other, bool(obstacle))


def _other_reader(source: fx.Node, readers: Collection[fx.Node], kinds: Kinds) -> str:
    """Who reads the input in the forward, beside the products under its mask."""
    waiting = [source]
    while waiting:
        for user in waiting.pop().users:
            if user in readers or user.op == "output" or kinds.get(user) is OperandKind.GRADIENT:
                continue
            if not isinstance(user.meta.get("val"), torch.Tensor):
                continue  # a size
            if user.target not in _SAME:
                return f"it is also read as it is, by {_name(user)}{_where(user)}"
            waiting.append(user)
    return ""


def _name(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")


def _where(node: fx.Node) -> str:
    path, _ = module_path(node)
    return f" in {path}" if path else ""
