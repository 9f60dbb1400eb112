"""How far the noise of a pruned gradient reaches: which weight gradients have it, and how much.

A product of dgrad hands its result down. Noise in it reaches every weight gradient below, and
keeps its share of the gradient's energy on the way, but where two gradients are added up (the
branch of a residual block and the path around it): there it is held against the sum.

    noise share behind a sum = share_a |a|^2 / |a + b|^2 + share_b |b|^2 / |a + b|^2

The energies are measured; the shares follow from them, without another pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from nmcompile.gemm import Gemm, OperandKind, Role
from nmcompile.graph.aten import argument
from nmcompile.graph.operand_kinds import Kinds

#: ``node.meta``: the number of a sum of two gradients.
SUM = "nm_sum_of_gradients"


@dataclass(frozen=True)
class Step:
    """A gradient of a graph: the gradients that it is made of, by their places in the flow.

    ``sum``: its number, where it adds two up. ``source``: the number of the product of dgrad that
    makes it.
    """

    inputs: tuple[int, ...]
    sum: int | None = None
    source: int | None = None


@dataclass
class Flow:
    """All gradients of a graph in order, and those that products of wgrad read, by their number."""

    steps: list[Step] = field(default_factory=list)
    read: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: fx.Graph, kinds: Kinds, gemms: Mapping[int, Gemm], sums: int) -> Flow:
        """Read a joint graph, and mark its sums with numbers from ``sums`` on."""
        flow, places = cls(), dict[fx.Node, int]()
        sources = {g.node: n for n, g in gemms.items() if g.role is Role.DGRAD}
        for node in graph.nodes:
            if kinds.get(node) is not OperandKind.GRADIENT:
                continue
            inputs = tuple(places[n] for n in node.all_input_nodes if n in places)
            number = None
            if node.target is torch.ops.aten.add.Tensor and len(inputs) == 2 and _alike(node):
                node.meta[SUM] = number = sums
                sums += 1
            places[node] = len(flow.steps)
            flow.steps.append(Step(inputs, number, sources.get(node)))
        for number, gemm in gemms.items():
            operand = next((o for o in gemm.operands if o.kind is OperandKind.GRADIENT), None)
            if gemm.role is Role.WGRAD and operand is not None:
                read = argument(gemm.node, operand.arg)
                if read in places:
                    flow.read[number] = places[read]
        return flow

    @property
    def sums(self) -> int:
        """How many sums there are."""
        return sum(step.sum is not None for step in self.steps)

    def reached(self, energies: Mapping[int, Sequence[float]]) -> dict[int, dict[int, float]]:
        """For each product of dgrad: the share of its noise in what each product of wgrad reads.

        Args:
            energies: squared norms of both terms and of the result, by the number of the sum.
        """
        sources = [step.source for step in self.steps if step.source is not None]
        column = {source: n for n, source in enumerate(sources)}
        shares: list[Tensor] = []
        for step in self.steps:
            inputs = [shares[n] for n in step.inputs]
            share = torch.zeros(len(sources))
            if step.sum is not None and step.sum in energies:
                one, two, both = energies[step.sum]
                for given, energy in zip(inputs, (one, two), strict=True):
                    share += given * (energy / both if both > 0 else 1.0)
            elif inputs:
                share = torch.stack(inputs).amax(0)
            if step.source is not None:
                share = share.clone()
                share[column[step.source]] = 1.0
            shares.append(share)
        found: dict[int, dict[int, float]] = {source: {} for source in sources}
        for weight, place in self.read.items():
            for source in sources:
                found[source][weight] = float(shares[place][column[source]])
        return found


def _alike(node: fx.Node) -> bool:
    one, two = node.args[:2]
    values = [getattr(n, "meta", {}).get("val") for n in (one, two, node)]
    return one is not two and len({str(getattr(v, "shape", None)) for v in values}) == 1
