"""An operator's call as named fields: how passes read and write the arguments of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import fx

from nmcompile import _torch


@dataclass(frozen=True)
class Call:
    """The arguments of one call, with the names and in the order of the operator's schema.

    A subclass is a frozen dataclass that sets ``operator``. Its tensors are tensors in a kernel and
    nodes in a graph.
    """

    operator: ClassVar[Any]
    __match_args__: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, node: fx.Node) -> Self:
        """The arguments of a node that calls ``cls.operator``."""
        assert node.target is cls.operator, f"{node.format_node()} is no {cls.operator}"
        return cls(**dict(zip(cls.__match_args__, node.args, strict=False)), **node.kwargs)

    @classmethod
    def nodes(cls, graph: fx.Graph) -> list[fx.Node]:
        """Every node of the graph that calls this operator, in no promised order."""
        return list(graph.find_nodes(op="call_function", target=cls.operator))

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments by position."""
        return tuple(getattr(self, name) for name in self.__match_args__)

    def run(self) -> Any:
        """What the operator makes of these arguments, which hold tensors."""
        return self.operator(*self.args)

    def write(self, node: fx.Node) -> None:
        """Let a node that calls this operator have these arguments."""
        assert node.target is self.operator
        node.args, node.kwargs = self.args, {}


def check_names(cls: type[Call]) -> None:
    """Refuse a class whose fields are not the arguments of its operator."""
    declared = _torch.argument_names(cls.operator)
    assert declared == cls.__match_args__, f"{cls.__name__}: {cls.__match_args__} != {declared}"
