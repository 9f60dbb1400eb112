"""The graph of one module as boxes with places: its own operations, its submodules folded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from nmcompile.errors import NMError
from nmcompile.policy.paths import is_inside
from nmcompile.report.nodes import Node, parts_of


class Kind(StrEnum):
    """What a box stands for."""

    OPERATION = "operation"
    PRODUCT = "product"
    INSERTED = "inserted"
    INPUT = "input"
    SUBMODULE = "submodule"
    OUTSIDE = "outside"  # where an edge comes from or goes to


@dataclass
class Box:
    """``title`` and ``detail`` are its two lines.

    A click leads to ``module``, the path of one, or else shows ``node``, by its number. ``x`` and
    ``y`` count boxes from the left and layers from the top.
    """

    kind: Kind
    title: str
    detail: str = ""
    node: int | None = None
    module: str | None = None
    x: float = 0.0
    y: float = 0.0


@dataclass
class Drawing:
    """Boxes and the edges between them, by their numbers."""

    boxes: list[Box] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)


class Drawings:
    """Every drawing of one graph: of a module, in one direction.

    Args:
        nodes: of the whole graph, in order.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self._numbers = {n.name: i for i, n in enumerate(nodes)}
        self._readers: defaultdict[str, list[Node]] = defaultdict(list)
        self._within: defaultdict[tuple[str, bool], list[Node]] = defaultdict(list)
        for n in nodes:
            if n.target == "output":
                continue
            for name in n.inputs:
                self._readers[name].append(n)
            if n.target != "input":  # drawn where it is read
                for module in ("", *_prefixes(n.module)):
                    self._within[module, n.backward].append(n)

    @property
    def modules(self) -> list[str]:
        """Every module in which something runs, and those that they are in; the model first."""
        return list(dict.fromkeys(["", *(module for module, _ in self._within)]))

    def draw(self, module: str, backward: bool) -> Drawing:
        """What runs in the module (of that path) in the backward, or in the forward.

        Raises:
            NMError: fast-sugiyama is not installed.
        """
        drawing = Drawing()
        places: dict[object, int] = {}

        def add(key: object, box: Box) -> int:
            if key not in places:
                places[key] = len(drawing.boxes)
                drawing.boxes.append(box)
            return places[key]

        inside = self._within[module, backward]
        home = {n.name: add(*_box(n, module, self._numbers[n.name])) for n in inside}
        edges: dict[tuple[int, int], None] = {}
        for n in inside:
            end = home[n.name]
            for name in n.inputs:
                start = home.get(name)
                if start is None:
                    number = self._numbers[name]
                    box = drawing.boxes[end]
                    found = _source(self.nodes[number], number, module, box, backward)
                    if found is None:
                        continue
                    start = add(*found)
                edges[start, end] = None
            for reader in self._readers[n.name]:
                if reader.name not in home:
                    edges[end, add(*_reader(reader, backward))] = None
        drawing.edges = [(a, b) for a, b in edges if a != b]
        _place(drawing)
        return drawing


def _prefixes(module: str) -> list[str]:
    parts = parts_of(module)
    return [".".join(parts[:k]) for k in range(1, len(parts) + 1)]


def _box(node: Node, module: str, number: int) -> tuple[object, Box]:
    """The key and the box of a node inside: its own, or that of the submodule it is in."""
    if node.module != module:
        rest = node.module[len(module) + 1 if module else 0 :]
        child = parts_of(rest)[0]
        path = f"{module}.{child}" if module else child
        return path, Box(Kind.SUBMODULE, child, module=path)
    kind = Kind.OPERATION
    if node.inserted:
        kind = Kind.INSERTED
    elif node.sites:
        kind = Kind.PRODUCT
    return node.name, Box(kind, node.target, _detail(node), node=number)


def _detail(node: Node) -> str:
    if node.shape is None:
        return ""
    short = _SHORT.get(node.dtype, node.dtype)
    return f"{' x '.join(node.shape) or 'scalar'} {short}"


_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


def _source(
    node: Node, number: int, module: str, reader: Box, backward: bool
) -> tuple[object, Box] | None:
    """The key and the box of a value that comes from elsewhere; None for what need not be seen."""
    folded = reader.kind is Kind.SUBMODULE
    if node.target in ("input", "constant"):
        if folded and (node.module == reader.module or is_inside(node.module, reader.module or "")):
            return None  # a parameter of a submodule
        label = (node.label or node.name).removeprefix(f"{module}.")
        return node.name, Box(Kind.INPUT, label, _detail(node), node=number)
    if node.backward != backward:
        title = "from the forward" if backward else "from the backward"
        if folded:
            return title, Box(Kind.OUTSIDE, title)
        where = f"{node.target} of {node.module or 'the model'}"
        return node.name, Box(Kind.OUTSIDE, title, where, node=number, module=node.module)
    title = f"from {node.module or 'the model'}"
    return node.name, Box(Kind.OUTSIDE, title, node.target, node=number, module=node.module)


def _reader(node: Node, backward: bool) -> tuple[object, Box]:
    """The same of who reads a result elsewhere: one for a module, one for the other direction."""
    if node.backward != backward:
        title = "to the forward" if backward else "to the backward"
        return title, Box(Kind.OUTSIDE, title, "saved for it")
    title = f"to {node.module or 'the model'}"
    return title, Box(Kind.OUTSIDE, title, module=node.module)


def _place(drawing: Drawing) -> None:
    """Give every box its place: layers from the top, as few crossings as the library finds."""
    try:
        from fast_sugiyama import from_edges
    except ImportError as error:
        raise NMError(
            "a page needs fast-sugiyama, which places the boxes of a graph: "
            "pip install 'nmcompile[page]'"
        ) from error
    left = 0.0
    placed: set[int] = set()
    # Each edge once and none from a box to itself: the library takes neither.
    layouts = (
        from_edges(drawing.edges, vertex_spacing=1, dummy_vertices=False) if drawing.edges else []
    )
    for positions, width, height, _ in layouts:
        origin = min(x for _, (x, _) in positions)
        for name, (x, y) in positions:
            number = int(name)
            box = drawing.boxes[number]
            box.x, box.y = left + x - origin, height - y
            placed.add(number)
        left += width + 1
    alone = [b for i, b in enumerate(drawing.boxes) if i not in placed]
    for box in alone:
        box.x, left = left, left + 1
