"""The operations of a graph as data, before and after the passes: what a drawing needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import OperandKind
from nmcompile.graph.dump import readable
from nmcompile.graph.module_path import module_path
from nmcompile.graph.operand_kinds import Kind, Kinds


@dataclass(frozen=True)
class Node:
    """One operation. ``inputs`` are names of nodes; what follows are facts, empty where unknown.

    ``target`` is the operator (``aten.mm``), or ``input``, ``output``, ``constant``. ``label`` is
    what the model calls an input; ``module`` is where a node runs or, of a parameter, whose it is.
    ``shape`` has symbolic sizes as text. ``source`` is ``file:line`` of the model's code.
    ``inserted``: the passes put it there. ``sites`` are the numbers of the products that it is.
    """

    name: str
    target: str
    module: str
    backward: bool
    shape: tuple[str, ...] | None
    dtype: str
    source: str
    inputs: tuple[str, ...]
    inserted: bool = False
    sites: tuple[int, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Listing:
    """A graph as it was at one time: as readable code, and by its nodes."""

    code: str
    nodes: tuple[Node, ...]

    @classmethod
    def of(
        cls,
        graph: fx.Graph,
        kinds: Kinds,
        name_of_input: Callable[[fx.Node], str],
        shown: Callable[[str], str] = str,
    ) -> Listing:
        """List a graph. Nodes without a kind were inserted after the kinds were found.

        ``shown`` gives the path of a module as the rows of the report have it.
        """
        backward: set[fx.Node] = set()
        nodes = []
        for node in graph.nodes:
            if _is_backward(node, kinds, backward):
                backward.add(node)
            nodes.append(_node(node, kinds.get(node), node in backward, name_of_input, shown))
        return cls(readable(graph), tuple(nodes))

    def marked(self, sites: Mapping[str, Sequence[int]], known: Listing | None) -> tuple[Node, ...]:
        """The nodes with the sites of products; what ``known`` does not have was inserted."""
        before = {n.name for n in (known or self).nodes}
        return tuple(
            replace(n, sites=tuple(sites.get(n.name, ())), inserted=n.name not in before)
            for n in self.nodes
        )


def _is_backward(node: fx.Node, kinds: Kinds, backward: set[fx.Node]) -> bool:
    if node.op == "output":
        return False
    if node in kinds:
        return kinds[node] is OperandKind.GRADIENT or "fwd_nn_module_stack" in node.meta
    late = node.meta.get("partitioner_tag") == "must_be_in_backward"
    return late or any(n in backward for n in node.all_input_nodes)


def _node(
    node: fx.Node,
    kind: Kind,
    backward: bool,
    name_of_input: Callable[[fx.Node], str],
    shown: Callable[[str], str],
) -> Node:
    value: Any = node.meta.get("val")
    tensor = isinstance(value, torch.Tensor)
    label = name_of_input(node) if node.op == "placeholder" else ""
    owner = label.rpartition(".")[0] if kind is OperandKind.WEIGHT else ""
    return Node(
        name=node.name,
        target=_target(node),
        module=shown(owner or module_path(node)[0]),
        backward=backward,
        shape=tuple(map(str, value.shape)) if tensor else None,
        dtype=str(value.dtype).removeprefix("torch.") if tensor else "",
        source=_source(node.meta.get("stack_trace") or ""),
        inputs=tuple(n.name for n in node.all_input_nodes),
        label=label,
    )


def parts_of(module: str) -> list[str]:
    """The components of a path; ``{0..79}``, which stands for several modules, is one."""
    return re.findall(r"(?:\{[^}]*\}|[^.])+", module)


_WORDS = {"placeholder": "input", "get_attr": "constant", "output": "output"}


def _target(node: fx.Node) -> str:
    if node.op in _WORDS:
        return _WORDS[node.op]
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet or getattr(node.target, "__name__", node.target))


def _source(trace: str) -> str:
    """The innermost place of a stack trace that is the user's."""
    end = len(trace)
    while (start := trace.rfind('File "', 0, end)) >= 0:  # traces are long, and it is near the end
        found = _PLACE.match(trace, start)
        if found is not None and not found[1].startswith(_OURS):
            return f"{found[1]}:{found[2]}"
        end = start
    return ""


_PLACE = re.compile(r'File "([^"]+)", line (\d+)')
_OURS = str(Path(__file__).parents[1])
