"""Draw every seed once: its readers share the number in memory (post-grad graphs).

    before   seed = randint(...)                      inlined: a kernel in front of every reader
             nm.compress(x, seed, ...);  nm.compress(y, seed, ...)
    after    the same graph, in which Inductor writes ``seed`` to memory where it stands

The number is the same, and nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from nmcompile import _torch
from nmcompile.ops.schemas import Compress, FusedCompress, KeepMask, Prune, PruneEach
from nmcompile.passes.plan import Kernels


def realise_seeds(kernels: Kernels) -> None:
    """Mark every seed of the graph that is computed there."""
    for seed in seeds(kernels.graph):
        _torch.compute_once(seed)


def seeds(graph: fx.Graph) -> Iterator[fx.Node]:
    """The seeds that masks and compressions of a graph read, some more than once."""
    for cls in (Prune, PruneEach, KeepMask, Compress, FusedCompress):
        for node in cls.nodes(graph):
            seed = cls.of(node).seed
            if isinstance(seed, fx.Node) and seed.op == "call_function":
                yield seed
