"""Where a joint graph stands: by itself, or inside of another one that calls it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from nmcompile import _torch
from nmcompile.capture.inputs import Capture
from nmcompile.capture.regions import Region, called_region
from nmcompile.graph.module_path import module_path
from nmcompile.graph.operand_kinds import Kinds
from nmcompile.graph.subgraphs import (
    LAYERS_UNKNOWN,
    OUTSIDE_UNKNOWN,
    Inside,
    by_position,
    inside_of,
    is_apart,
    is_planned,
    is_unused,
    kinds_in,
    not_planned,
    remember,
)
from nmcompile.inductor.options import Settings
from nmcompile.reason import Reason


@dataclass(frozen=True)
class Place:
    """What is known of a joint graph before anything in it is.

    ``region``: the modules that it is of. ``doubt``: why nothing in it can be pruned. ``operator``:
    the higher-order one that calls it, if one does, and ``times``: how often a step runs it, None
    where nobody knows. ``apart``: whether forward and backward of what it holds are two graphs;
    ``recomputed``: whether a checkpoint runs it once more.
    """

    kinds: Kinds
    region: Region
    doubt: Reason | None = None
    operator: str = ""
    times: int | None = 1
    apart: bool = False
    recomputed: bool = False


def place_of(graph: fx.Graph, settings: Settings, capture: Capture) -> Place | None:
    """The place of a graph that Inductor hands to a pass now.

    None where there is nothing to plan: it is part of a graph that was planned, or never called.
    """
    around, original = _torch.graphs_around()
    if len(around) < 2:
        kinds, bodies = kinds_in(graph, capture.kind_of_input)
        remember(bodies)
        return Place(kinds, settings.region, capture.doubt)
    if is_planned(graph) or is_unused(around):
        return None
    inside = inside_of(graph)
    if inside is None:  # the first graph of all: look around once
        remember(kinds_in(around[0].graph, capture.kind_of_input)[1])
        inside = inside_of(graph if original is None else original.graph)
    if inside is None:
        return Place(kinds_in(graph, capture.kind_of_input)[0], settings.region, OUTSIDE_UNKNOWN)
    kinds, _ = kinds_in(graph, by_position(graph, inside.kinds))
    region = _region(graph, inside, settings)
    doubt = capture.doubt or (LAYERS_UNKNOWN if region is None else not_planned(inside))
    told = (inside.operator, inside.times, is_apart(inside), inside.recomputed)
    return Place(kinds, region or settings.region, doubt, *told)


def _region(graph: fx.Graph, inside: Inside, settings: Settings) -> Region | None:
    """The modules that a graph is of; None where nothing tells and the policy has to know."""
    outer = settings.region
    # An input may carry the path of another call.
    paths = [module_path(node)[0] for node in graph.nodes if node.op == "call_function"]
    region = called_region(outer, inside.callers, paths) if inside.told_apart else None
    lost = "scan" in inside.operators  # PyTorch traces it once more, and no module is left
    names = [rule.module or (lost and rule.class_) for rule in settings.policy.all_rules]
    return None if any(names) and (region is None or lost) else region or outer
