"""What the passes share: the graph, the policy, and what has been found, decided and done so far.

A decision never changes. What a pass does for one is a result of its own, beside it, under the
number of the site.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from nmcompile.capture.ranks import Ranks
from nmcompile.capture.regions import Region
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.mask_spec import MaskSpec
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning
from nmcompile.execution.choose import Execution
from nmcompile.execution.targets import Target
from nmcompile.execution.units import Unit
from nmcompile.gemm import Gemm, Operand, Pruning
from nmcompile.graph.find_skipped import Skipped
from nmcompile.graph.operand_kinds import Kinds
from nmcompile.graph.stored_weight import StoredWeight
from nmcompile.ops.call import Call
from nmcompile.policy import Policy, Rule
from nmcompile.policy.rule import MaskLife
from nmcompile.reason import Code, Reason
from nmcompile.weight_masks.stored_mask import StoredMask


@dataclass(frozen=True)
class Decision:
    """What one product gets, and which rule said so. ``site`` is its number in the graph.

    ``pruning`` is None where nothing is pruned: ``execution`` says why.
    """

    site: int
    gemm: Gemm
    rule: Rule | None
    pruning: Pruning | None
    execution: Execution

    @property
    def declined(self) -> bool:
        """Whether the policy prunes the product and it is dense all the same."""
        return any(reason.code is Code.DECLINED for reason in self.execution.reasons)


@dataclass(frozen=True)
class Product:
    """Where a decided product stands in the graph now, and which of its operands is pruned."""

    node: fx.Node
    operand: Operand | None


@dataclass(frozen=True)
class KeptMask:
    """The mask of a weight that is kept between steps.

    ``weight`` is the input that holds the weight, ``number`` its place among those of the captured
    graph.
    """

    weight: fx.Node
    number: int
    stored: StoredMask
    life: MaskLife


@dataclass(frozen=True)
class Compressed:
    """A compressed operand of the graph.

    ``packed`` holds the operand of ``nm.mm``, whose rows and columns are the dimensions ``rows``
    and ``columns`` of ``operand``, the dense node in the graph. ``column_major``: the operand is
    the transpose of what lies row by row in memory. ``operand`` is pruned already where the layout
    is ``opaque``: nothing can be read from ``packed`` then.
    """

    packed: fx.Node
    operand: fx.Node
    rows: int
    columns: int
    column_major: bool
    layout: str

    @property
    def opaque(self) -> bool:
        """Whether only the library can read it."""
        return Layout(self.layout).opaque


@dataclass(frozen=True)
class Simulated:
    """``product`` reads ``pruned`` where it read ``original``."""

    product: fx.Node
    original: fx.Node
    pruned: fx.Node


@dataclass(frozen=True)
class Sparse:
    """``product`` is an ``nm.mm`` of what ``original`` has become."""

    product: fx.Node
    original: fx.Node
    compressed: Compressed


@dataclass
class Plan:
    """The state of one graph on its way through the passes.

    ``target``: the GPU to decide for, None for the device of each product. ``doubt``: why nothing
    in this graph tells a gradient from an activation, where that is so. ``operator``: the
    higher-order one that calls this graph, ``times``: how often a step does, None where nobody
    knows. ``modules``: how many modules that are compiled one by one share it.
    ``apart``: whether its backward is a graph of its own, which may compute it again;
    ``recomputed``: whether a checkpoint around it does. ``captured``: whether it is replayed as a
    CUDA graph.

    By site: ``pruning`` is what its rule prunes, whether or not it will be; ``products`` is where
    each stands now, ``weights`` the input that holds the pruned weight of a forward product,
    ``kept`` the mask of it that is kept between steps, as its rule asks, ``results`` what pruning
    made of it, ``masked`` the input gradient under the mask of a forward
    product (``backward = "exact"``), ``notes`` what else there is to say about it,
    ``dense_seconds`` the predicted time of it as a dense product.

    ``whole``: the inputs whose masks can be kept, and the number of each in the captured graph;
    ``masks``: the inputs that are kept masks, by that number and how each is taken.
    """

    graph: fx.Graph
    kinds: Kinds
    policy: Policy
    autotune: bool = False
    region: Region = field(default_factory=Region)
    ranks: Ranks | None = None
    target: Target | None = None
    doubt: Reason | None = None
    operator: str = ""
    times: int | None = 1
    modules: int = 1
    apart: bool = False
    recomputed: bool = False
    whole: Mapping[fx.Node, int] = field(default_factory=dict)
    masks: Mapping[tuple[int, StoredMask], fx.Node] = field(default_factory=dict)
    captured: bool = False
    sharing: list[int] = field(default_factory=list)  # ranks that draw the masks of this one
    gemms: list[Gemm] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    pruning: dict[int, Pruning] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    units: list[Unit] = field(default_factory=list)
    dense_seconds: dict[int, float] = field(default_factory=dict)
    products: dict[int, Product] = field(default_factory=dict)
    weights: dict[int, StoredWeight] = field(default_factory=dict)
    kept: dict[int, KeptMask] = field(default_factory=dict)
    results: dict[int, Simulated | Sparse] = field(default_factory=dict)
    masked: dict[int, fx.Node] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: dict[int, list[Reason]] = field(default_factory=lambda: defaultdict(list))
    seeds: dict[tuple[bool, str], fx.Node] = field(default_factory=dict)
    pruned: dict[Any, fx.Node] = field(default_factory=dict)  # of what is compressed, by its mask

    def warn(self, text: str) -> None:
        """Warn the user, now and whenever the compiled graph comes out of a cache."""
        self.warnings.append(text)
        warnings.warn(text, NMWarning, stacklevel=2)

    def reasons(self, decision: Decision) -> tuple[Reason, ...]:
        """Why the product is what it is, and what was done for it besides."""
        return (*decision.execution.reasons, *self.notes.get(decision.site, ()))


@dataclass
class Kernels:
    """The state of a forward or backward graph on its way through the post-grad passes.

    ``devices`` are those whose compress kernels are generated, ``specs`` what was generated;
    ``masks`` are the mask kernels that Inductor launches.
    ``lower``: hand them to Inductor instead of launching them from operators; ``autotune``: let
    Inductor time 4 and 8 warps instead of taking the tile's own number; ``fuse``: take producers
    into the kernels. ``observer``: the meter that sees what is pruned; None for none.
    """

    graph: fx.Graph
    devices: tuple[str, ...] = ("cuda",)
    lower: bool = True
    autotune: bool = False
    fuse: bool = True
    observer: int | None = None
    specs: list[KernelSpec] = field(default_factory=list)
    masks: list[MaskSpec] = field(default_factory=list)
    lowered: int = 0

    def called(self, cls: type[Call]) -> list[fx.Node]:
        """Every call of an operator on a device whose kernels are not generated."""
        return [n for n in cls.nodes(self.graph) if n.meta["val"].device.type not in self.devices]
