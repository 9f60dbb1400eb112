"""What the passes share: the graph, the policy, and what has been found and decided so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from nmcompile.capture.ranks import Ranks
from nmcompile.capture.regions import Region
from nmcompile.compressed.layouts import Layout
from nmcompile.execution.cost import Estimate
from nmcompile.gemm import Gemm, Operand, Pruning
from nmcompile.graph.find_skipped import Skipped
from nmcompile.graph.operand_kinds import Kinds
from nmcompile.policy import Policy, Rule


@dataclass(frozen=True)
class Compressed:
    """A compressed operand of the graph.

    ``packed`` holds the operand of ``nm.mm``, whose rows and columns are the dimensions ``rows``
    and ``columns`` of ``operand``, the dense node in the graph. ``column_major``: the operand is
    the transpose of what lies row by row in memory.
    """

    packed: fx.Node
    operand: fx.Node
    rows: int
    columns: int
    column_major: bool
    layout: str


@dataclass
class Decision:
    """What one product gets, and which rule said so. ``site`` is its number in the graph.

    ``node`` is the product's node now, ``original`` its operand before, and ``pruned`` (simulated)
    or ``compressed`` (sparse) its operand after.
    """

    site: int
    gemm: Gemm
    rule: Rule | None
    pruning: Pruning | None
    execution: str  # "sparse", "simulate" or "dense"
    reason: str
    node: fx.Node
    layout: Layout | None = None
    estimate: Estimate | None = None
    original: fx.Node | None = None
    pruned: fx.Node | None = None
    compressed: Compressed | None = None
    masked: fx.Node | None = None  # the input gradient under the forward mask (exact)

    def operand_node(self, operand: Operand) -> fx.Node:
        """The node that is this operand now."""
        node = self.node.args[operand.arg]
        assert isinstance(node, fx.Node)
        return node

    def set_operand(self, operand: Operand, value: fx.Node) -> None:
        """Let the product read ``value`` instead."""
        args = list(self.node.args)
        args[operand.arg] = value
        self.node.args = tuple(args)


@dataclass
class Plan:
    """The state of one graph on its way through the passes."""

    graph: fx.Graph
    kinds: Kinds
    policy: Policy
    autotune: bool = False
    region: Region = field(default_factory=Region)
    ranks: Ranks | None = None
    sharing: list[int] = field(default_factory=list)  # ranks that draw the masks of this one
    gemms: list[Gemm] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    seeds: dict[tuple[bool, str], fx.Node] = field(default_factory=dict)
