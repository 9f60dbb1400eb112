"""What the callers of a graph know about it: the bodies of higher-order operators.

    joint graph      y = invoke_subgraph(fw, x, w);  dx, dw = invoke_subgraph(bw, x, w, dy)
    fw, bw           graphs of their own, whose inputs are plain placeholders

An input is of the strongest kind among what all calls feed it, nested to any depth; what a loop
carries, until nothing changes. Inductor runs its joint passes on each graph before the one that
calls it, on copies of some, and on some twice: a region's forward and backward are one graph first,
and come back as two after the partitioner. So what is known is written into the inputs' metadata,
which copies keep.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.aten import is_item, item_index
from nmcompile.graph.computed_again import is_again, mark_again, multiplies, same_values
from nmcompile.graph.higher_order import REGION, Body, bodies, outputs
from nmcompile.graph.module_path import module_path
from nmcompile.graph.operand_kinds import Kind, Kinds, operand_kinds, strongest
from nmcompile.graph.weight_gradients import mark_weight_gradient, weight_gradients
from nmcompile.reason import Code, Reason

OUTSIDE_UNKNOWN = Reason(
    Code.IN_SUBGRAPH,
    "inside of a higher-order operator nothing says where an operand comes from: it may be a "
    "gradient",
)

LAYERS_UNKNOWN = Reason(
    Code.LAYERS_UNKNOWN,
    "nothing says of which layers this graph is, but the policy has rules for modules by name",
)

#: Operators whose graphs are planned, forward and backward apart. In others, and where these stand
#: inside of each other, products are listed and stay dense.
_APART = frozenset(["cond", "map_impl", "scan", "while_loop", "while_loop_stack_output"])
_PLANNED, _INSIDE = "nm_planned", "nm_inside"


@dataclass(frozen=True)
class Inside:
    """What is known of a graph that others call.

    ``operator``: of the calls; ``operators``: of those of the graphs around as well. ``kinds``: of
    its inputs. ``callers``: the module of each call, each once; ``told_apart``: whether calls with
    different weights are of different modules. ``times``: how often a step runs it; None where
    nobody knows. ``complete``: whether the backward computes again, of what its forward multiplied,
    nothing but that. ``recomputed``: whether a checkpoint runs the forward once more.
    """

    operator: str
    operators: frozenset[str]
    kinds: tuple[Kind, ...]
    callers: tuple[str, ...]
    told_apart: bool
    times: int | None
    complete: bool = True
    recomputed: bool = False


@dataclass
class _Known:
    """The same while it is being found out; ``calls`` are those of the round."""

    operator: str
    kinds: list[Kind]
    calls: list[tuple[fx.Node, Body]] = field(default_factory=list)


def kinds_in(
    root: fx.Graph, kind_of_input: Callable[[fx.Node], Kind]
) -> tuple[Kinds, dict[fx.GraphModule, Inside]]:
    """The kinds of the values of a graph, and what is known of every graph that it reaches.

    Args:
        root: a graph that no other one calls.
        kind_of_input: the kind of its placeholders.
    """
    search = _Search()
    kinds = search.run(root, kind_of_input)
    apart = set(_apart(search.known))
    if apart:
        search = _Search()
        kinds = search.run(root, kind_of_input)
    incomplete = {call for pair in apart if not search.is_complete(*pair) for call in pair}
    if search.known:
        _mark_weight_gradients(root, kinds, search)
    around = _Around(root.owning_module, search.known)
    found = {
        gm: Inside(
            known.operator,
            around.operators(gm),
            tuple(known.kinds),
            *_callers(known),
            around.times(gm),
            not any(node in incomplete for node, _ in known.calls),
            any(_is_recomputed(node) for node, _ in known.calls),
        )
        for gm, known in search.known.items()
    }
    return kinds, found


def not_planned(inside: Inside) -> Reason | None:
    """Why nothing is pruned in a graph that is called so; None where it is."""
    if not inside.operators - {REGION} or (len(inside.operators) == 1 and is_apart(inside)):
        incomplete = "a backward computes what its forward did not, so that the two would differ"
        return None if inside.complete else Reason(Code.IN_SUBGRAPH, incomplete)
    within = " and ".join(sorted(inside.operators))
    return Reason(Code.IN_SUBGRAPH, f"nothing is pruned inside of {within} yet")


def is_apart(inside: Inside) -> bool:
    """Whether forward and backward of what the graph holds are graphs of their own."""
    return inside.operator in _APART


def remember(found: dict[fx.GraphModule, Inside]) -> None:
    """Write into the inputs of every graph what is known of it."""
    for gm, inside in found.items():
        for node in gm.graph.find_nodes(op="placeholder"):
            node.meta[_INSIDE] = inside


def inside_of(graph: fx.Graph) -> Inside | None:
    """What is known of a graph; None where that is nothing."""
    return next((n.meta.get(_INSIDE) for n in graph.find_nodes(op="placeholder")), None)


def by_position(graph: fx.Graph, kinds: Sequence[Kind]) -> Callable[[fx.Node], Kind]:
    """The kind of each input of a graph, of which ``kinds`` are those in order."""
    inputs = dict(zip(graph.find_nodes(op="placeholder"), kinds, strict=True))
    return lambda node: inputs.get(node)


class _Search:
    """One walk over all graphs, repeated until no input is of a stronger kind than before."""

    def __init__(self) -> None:
        self.known: dict[fx.GraphModule, _Known] = {}
        self.changed = False
        self.seen: dict[tuple[fx.GraphModule, tuple[Kind, ...]], list[Kind]] = {}

    def run(self, root: fx.Graph, kind_of_input: Callable[[fx.Node], Kind]) -> Kinds:
        """The kinds of the outermost graph, when no input becomes stronger any more."""
        while True:
            self.changed = False
            self.seen.clear()
            for known in self.known.values():
                known.calls.clear()
            kinds = self.evaluate(root, kind_of_input)
            if not self.changed:
                return kinds

    def is_complete(self, _: fx.Node, backward: fx.Node) -> bool:
        """Whether every product without a gradient in a backward is one of its forward."""
        for body in bodies(backward):
            graph = body.gm.graph
            kinds = self.evaluate(graph, by_position(graph, self.known[body.gm].kinds))
            for node in graph.nodes:
                own = kinds[node] is not OperandKind.GRADIENT and not is_again(node)
                if own and multiplies(node):
                    return False
        return True

    def evaluate(self, graph: fx.Graph, kind_of_input: Callable[[fx.Node], Kind]) -> Kinds:
        """The kinds of a graph, with all that it calls."""
        return operand_kinds(graph, kind_of_input, kinds_of_results=self._results)

    def _results(self, node: fx.Node, kinds: Kinds) -> list[Kind] | None:
        """The kind of each result of a call; None for what is no call of a known operator."""
        merged: list[Kind] = []
        called = bodies(node)
        for body in called:
            found = self._of_body(node, body, kinds)
            if body.returns:
                merged = [
                    strongest(pair) for pair in itertools.zip_longest(merged, found, fillvalue=None)
                ]
        return merged if called else None

    def _of_body(self, node: fx.Node, body: Body, kinds: Kinds) -> list[Kind]:
        inputs = body.gm.graph.find_nodes(op="placeholder")
        start = _Known(node.target.name(), [None] * len(inputs))  # type: ignore[union-attr]
        known = self.known.setdefault(body.gm, start)
        known.calls.append((node, body))
        for i, operand in enumerate(body.operands):
            self._strengthen(known, i, kinds[operand] if isinstance(operand, fx.Node) else None)
        while True:
            found = self._outputs(body.gm, tuple(known.kinds))
            stronger = [self._strengthen(known, to, found[of]) for of, to in body.carries]
            if not any(stronger):
                return found

    def _outputs(self, gm: fx.GraphModule, kinds: tuple[Kind, ...]) -> list[Kind]:
        """The kinds of what a graph returns for inputs of these kinds."""
        if (gm, kinds) not in self.seen:
            of_input = by_position(gm.graph, kinds)
            inner = self.evaluate(gm.graph, of_input)
            found = [inner[r] if isinstance(r, fx.Node) else None for r in outputs(gm.graph)]
            self.seen[gm, kinds] = found
        return self.seen[gm, kinds]

    def _strengthen(self, known: _Known, i: int, kind: Kind) -> bool:
        stronger = strongest((known.kinds[i], kind))
        if stronger == known.kinds[i]:
            return False
        known.kinds[i] = stronger
        self.changed = True
        return True


def _callers(known: _Known) -> tuple[tuple[str, ...], bool]:
    """The module of each call, and whether calls of one module have the same weights."""
    weights: dict[str, set[Any]] = {}
    for node, body in known.calls:
        pairs = zip(known.kinds, body.operands, strict=True)
        own = tuple(x for kind, x in pairs if kind is OperandKind.WEIGHT)
        weights.setdefault(module_path(node)[0], set()).add(own)
    return tuple(weights), all(len(own) == 1 for own in weights.values())


def _apart(known: dict[fx.GraphModule, _Known]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Calls whose backward is a call with a graph of its own: both, and what is computed again."""
    calls = dict.fromkeys(node for found in known.values() for node, _ in found.calls)
    first: dict[Any, fx.Node] = {}
    for node in calls:
        number = node.meta.get("seq_nr")
        if number is None or node.target.name() == REGION:  # type: ignore[union-attr]
            continue
        reads = [k for body in bodies(node) for k in known[body.gm].kinds]
        forward = first.setdefault((node.graph, number), node)
        if forward is not node and OperandKind.GRADIENT in reads:
            for ours, theirs in zip(bodies(forward), bodies(node), strict=False):
                mark_again(same_values(forward, ours, theirs))
            yield forward, node


def _is_recomputed(call: fx.Node) -> bool:
    """Whether a call, or the one whose gradients it computes, stands in a checkpoint."""
    number = call.meta.get("seq_nr")
    alike = [n for n in call.graph.nodes if n.target is call.target]
    same = [n for n in alike if n is call or (number and n.meta.get("seq_nr") == number)]
    return any(node.meta.get("recompute") for node in same)


def _mark_weight_gradients(root: fx.Graph, kinds: Kinds, search: _Search) -> None:
    """Pass on through the calls which results are summed into the gradient of a weight."""
    graphs = {root: kinds}
    for graph in (stack := [root]):
        summed = weight_gradients(graph, graphs[graph])
        for node in graph.nodes:
            taken = [(item_index(n), summed[n]) for n in node.users if n in summed and is_item(n)]
            for body in bodies(node):
                inner = body.gm.graph
                for index, count in taken if body.returns else ():
                    # What a loop returns of each iteration is a stack of what its graph returns.
                    each = max(1, count // (body.times or 1))
                    mark_weight_gradient(outputs(inner)[index], each)
                if inner not in graphs:
                    of_input = by_position(inner, search.known[body.gm].kinds)
                    graphs[inner] = search.evaluate(inner, of_input)
                    stack.append(inner)


class _Around:
    """What follows from the calls of each graph and of those that it is called in."""

    def __init__(self, root: fx.GraphModule | None, known: dict[fx.GraphModule, _Known]) -> None:
        self.calls: dict[fx.GraphModule | None, dict[fx.Node, Body]] = {}
        for gm, found in known.items():
            self.calls[gm] = dict(found.calls)  # each once
        self.root = root

    def times(self, gm: fx.GraphModule | None) -> int | None:
        """How often a step runs a graph: each call as often as the graph that it stands in."""
        if gm is self.root:
            return 1
        each = [
            (self.times(node.graph.owning_module), body.times)
            for node, body in self.calls.get(gm, {}).items()
        ]
        numbers = [outer * inner for outer, inner in each if outer and inner]
        return sum(numbers) if numbers and len(numbers) == len(each) else None

    def operators(self, gm: fx.GraphModule | None) -> frozenset[str]:
        """The operators that a graph stands inside of."""
        found: frozenset[str] = frozenset()
        for node in self.calls.get(gm, {}):
            found |= {node.target.name()} | self.operators(node.graph.owning_module)  # type: ignore[union-attr]
        return found


def mark_planned(graph: fx.Graph) -> None:
    """Remember in its nodes, which the partitioner copies, that a graph has been planned."""
    for node in graph.nodes:
        node.meta[_PLANNED] = True


def is_planned(graph: fx.Graph) -> bool:
    """Whether the graph is part of one that has been planned."""
    return any(n.meta.get(_PLANNED) for n in graph.nodes if n.op == "call_function")


def is_unused(around: Sequence[fx.GraphModule]) -> bool:
    """Whether the last of these graphs, each inside of the one before, is never called there."""
    for outer, inner in itertools.pairwise(around):
        held = [n for n in outer.graph.find_nodes(op="get_attr") if _at(outer, n) is inner]
        if held and not any(node.users for node in held):
            return True
    return False


def _at(gm: fx.GraphModule, node: fx.Node) -> object:
    return getattr(gm, str(node.target), None)
