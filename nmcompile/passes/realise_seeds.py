"""Draw every seed once, by the kernel with which Inductor draws its own (post-grad graphs).

    before   seeds = inductor_seeds(2);  number = inductor_lookup_seed(seeds, 1)
             seed = inductor_randint(-2**63, 2**63 - 1, [1], number)    in front of every reader
             nm.compress(x, seed, ...);  nm.compress(y, seed, ...)
    after    seed = slice(seeds, 0, 1, 2)                               a view: no kernel
             nm.compress(x, seed, ...);  nm.compress(y, seed, ...)

Inductor's seeds are drawn by PyTorch's generator, as 64-bit numbers, and a mask's generator takes
any such number. What is computed from a seed (``nm.rank_seed``) Inductor writes to memory once,
where it stands. Nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.graph.insert import Inserter
from nmcompile.ops.fused_schemas import FusedCompress, FusedPrune
from nmcompile.ops.schemas import Compress, KeepMask, Prune, PruneEach
from nmcompile.passes.plan import Kernels

aten = torch.ops.aten


def realise_seeds(kernels: Kernels) -> None:
    """Take each seed that is drawn from Inductor's; mark what is computed from it."""
    for seed in dict.fromkeys(seeds(kernels.graph)):
        draw = next(
            (node for node in (seed, *seed.all_input_nodes) if _torch.seed_of_draw(node)), None
        )
        if draw is not seed:
            _torch.compute_once(seed)
        if draw is not None:
            _read_from_memory(kernels.graph, draw)


def seeds(graph: fx.Graph) -> Iterator[fx.Node]:
    """The seeds that masks and compressions of a graph read, some more than once."""
    for cls in (Prune, PruneEach, KeepMask, FusedPrune, Compress, FusedCompress):
        for node in cls.nodes(graph):
            seed = cls.of(node).seed
            if isinstance(seed, fx.Node) and seed.op == "call_function":
                yield seed


def _read_from_memory(graph: fx.Graph, draw: fx.Node) -> None:
    place, insert = _torch.seed_of_draw(draw), Inserter(graph)
    assert place is not None
    every, index = place
    (number,) = draw.all_input_nodes
    with insert.before(draw):
        one = insert.call(draw, aten.slice.Tensor, every, 0, index, index + 1, name="seed")
    draw.replace_all_uses_with(one)
    for node in (draw, number):
        if not node.users:
            graph.erase_node(node)
