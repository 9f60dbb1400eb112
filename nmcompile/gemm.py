"""The vocabulary of matrix products: which one it is, in which role, with which operands.

role     GEMM (linear layer Y[T,O] = X[T,I] W[O,I]^T)    reduction dimension
fprop    X W^T                                           I
dgrad    dY W                                            O
wgrad    dY^T X                                          T
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nmcompile.masks.formats import Method, NMFormat
from nmcompile.reason import Reason

if TYPE_CHECKING:
    from torch import fx  # policies, which share this vocabulary, are read without PyTorch


class Role(StrEnum):
    """Which of the three GEMMs of training a product is."""

    FPROP = "fprop"
    DGRAD = "dgrad"
    WGRAD = "wgrad"


class OperandKind(StrEnum):
    """What an operand holds. ``GRADIENT`` is the neural gradient dY, never a weight gradient."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    GRADIENT = "gradient"


class Unknown(StrEnum):
    """What stands for the kind of an operand that data flow cannot tell: perhaps a gradient."""

    UNKNOWN = "unknown"


class Op(StrEnum):
    """The kind of product: with one weight operand, with none or two, or a convolution.

    ``GROUPED`` has one weight operand, a stack of matrices of which each row of X has its own.
    """

    LINEAR = "linear"
    MATMUL = "matmul"
    CONV = "conv"
    GROUPED = "grouped"


#: The operand kinds that a product of each role can have.
KINDS_OF_ROLE: dict[Role, tuple[OperandKind, ...]] = {
    Role.FPROP: (OperandKind.ACTIVATION, OperandKind.WEIGHT),
    Role.DGRAD: (OperandKind.GRADIENT, OperandKind.WEIGHT),
    Role.WGRAD: (OperandKind.GRADIENT, OperandKind.ACTIVATION),
}


@dataclass(frozen=True)
class Operand:
    """One of the two operands of a product.

    ``arg`` is the name of the argument that it is. ``dims`` are its reduction dimensions, flattened
    in this order; an N:M block runs along them. ``groups`` independent channel groups share the
    first of them.
    ``tile_dims`` are the two GEMM dimensions of a weight, for masks that are N:M along both
    (``tile_groups`` channel groups share the first of them).
    ``extent`` is the length of one run of blocks (inside a group), None where it is symbolic.
    ``offsets`` is the name of the argument that says where groups end along the one dimension of
    ``dims``: blocks start anew with each group.
    ``obstacle`` says why the operand has no N:M block in place.
    """

    kind: OperandKind | Unknown
    arg: str
    dims: tuple[int, ...]
    extent: int | None
    groups: int = 1
    tile_dims: tuple[int, int] | None = None
    tile_groups: int = 1
    offsets: str | None = None
    obstacle: str | None = None


@dataclass(frozen=True)
class Gemm:
    """One product of a graph in one role: what a policy rule is matched against.

    ``sizes`` are the GEMM's (batch, M, N, K), symbolic where the graph is; ``flops`` is
    2*batch*M*N*K (dense), None where a size is symbolic, and ``flops_hint`` the same with the sizes
    that were traced, None where one is data. ``node`` is the product as it was found, which a pass
    may have replaced since (``passes.plan.Plan.products``). ``forward`` is the node of the fprop
    product that a backward product belongs to, or the first of several that it may belong to
    (``ambiguous``): all of them read what it reads. ``guess`` says why its role, or the kind of an
    operand, could not be derived; such a product is never pruned.
    ``again``: it computes once more, in a graph for the backward, what another graph multiplied.
    """

    node: fx.Node
    op: Op
    role: Role
    target: str
    lhs: Operand
    rhs: Operand
    sizes: tuple[Any, Any, Any, Any]
    dtype: str
    device: str
    path: str
    module_class: str
    seq_nr: int | None
    forward: fx.Node | None = None
    ambiguous: bool = False
    guess: Reason | None = None
    again: bool = False

    @property
    def flops(self) -> float | None:
        """Dense FLOPs of the product; None where a size is symbolic."""
        return _product(self.sizes) if all(isinstance(s, int) for s in self.sizes) else None

    @property
    def flops_hint(self) -> float | None:
        """Dense FLOPs with the sizes that were traced; None where a size is data."""
        return _product(tuple(map(size_hint, self.sizes))) if self.has_hints else None

    @property
    def has_hints(self) -> bool:
        """Whether all sizes were known when the graph was traced: one that is data was not."""
        return all(map(has_hint, self.sizes))

    @property
    def where(self) -> str:
        """The module's path, or the node's name outside of any module."""
        return self.path or self.node.name

    @property
    def operands(self) -> tuple[Operand, Operand]:
        """Left and right operand."""
        return self.lhs, self.rhs


@dataclass(frozen=True)
class Pruning:
    """Prune this operand so; ``exact``: give the true gradient of the pruned product."""

    operand: Operand
    format: NMFormat
    method: Method
    exact: bool = False

    @property
    def kind(self) -> OperandKind:
        """What is pruned; never an operand of unknown kind."""
        assert isinstance(self.operand.kind, OperandKind)
        return self.operand.kind


def size_hint(size: Any) -> int:
    """A concrete value for a size without guarding on it; 0 where there is none."""
    return _hint(size) or 0


def has_hint(size: Any) -> bool:
    """Whether there is such a value: not for a size that is data (``x[mask]``, ``tolist()``)."""
    return _hint(size) is not None


def _hint(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    hint = getattr(getattr(size, "node", None), "hint", None)
    return int(hint) if isinstance(hint, int) else None


def _product(sizes: tuple[int, ...]) -> float:
    batch, m, n, k = sizes
    return 2.0 * batch * m * n * k
