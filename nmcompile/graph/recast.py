"""Cast another value to the 8-bit operand of one product, and leave every other reader alone.

    before   q = cast(x, scale(x));     y = _scaled_mm(q, w, 1 / scale(x), ...)
    after    p = cast(z, scale(z));     y = _scaled_mm(p, w, 1 / scale(z), ...)

where z stands in the place of x. One cast can feed several products in different roles: what leads
from x to the operand is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from nmcompile.graph.aten import (
    FLAT_VIEWS,
    argument,
    permutation,
    scale_name,
    set_argument,
)
from nmcompile.graph.float8 import RESHAPES, Cast
from nmcompile.graph.insert import Inserter


@dataclass
class Frame:
    """``value``: a cast's source in the order in which the product reads it.

    Made at the insertion point, on behalf of ``site``.
    """

    insert: Inserter
    site: fx.Node
    value: fx.Node
    _undo: list[tuple[fx.Node, fx.Node | list[int]]] = field(default_factory=list)

    @classmethod
    def of(
        cls, insert: Inserter, site: fx.Node, steps: tuple[fx.Node, ...], source: fx.Node
    ) -> Frame:
        """``source``, of the shape of the cast's source, behind the views among its steps."""
        frame = cls(insert, site, source)
        for view in _views(steps):
            frame._undo.append((frame.value, view))
            if isinstance(view, fx.Node):
                frame.value = _again(insert, site, view, {view.all_input_nodes[0]: frame.value})
            else:
                frame.value = insert.permute(site, frame.value, view)
        return frame

    def undo(self, value: fx.Node) -> fx.Node:
        """A value in the product's order, in the order of the source."""
        for before, view in reversed(self._undo):
            if isinstance(view, fx.Node):
                value = self.insert.reshape(self.site, value, self.insert.sizes(self.site, before))
            else:
                inverse = [view.index(d) for d in range(len(view))]
                value = self.insert.permute(self.site, value, inverse)
        return value


def _views(steps: tuple[fx.Node, ...]) -> list[fx.Node | list[int]]:
    """The views among the steps: another shape, or an order of dimensions."""
    found: list[fx.Node | list[int]] = []
    for step in steps:
        order = permutation(step)
        if order is not None:
            before = found[-1] if found else None
            if isinstance(before, list):
                found[-1] = [before[d] for d in order]
            else:
                found.append(list(order))
        elif step.target in RESHAPES:
            found.append(step)
    return [view for view in found if isinstance(view, fx.Node) or view != sorted(view)]


def recast(insert: Inserter, product: fx.Node, arg: str, cast: Cast, value: fx.Node) -> None:
    """Let the operand ``arg`` of the product be cast from ``value``, of the source's shape.

    A scale that follows the source then follows ``value``, wherever it is undone.
    """
    copies = {cast.source: value}
    needed, names = set(cast.steps), [arg]
    if cast.is_dynamic:
        assert cast.scale is not None
        for scale in (cast.scale, *cast.scales):
            needed.update(scale.nodes)
        names += filter(None, [scale_name(product, arg)])
    with insert.before(product):
        _copy(insert, product, needed, copies)
    for name in names:
        given = fx.node.map_arg(argument(product, name), lambda n: copies.get(n, n))
        set_argument(product, name, given)
    for reader in cast.undo:
        assert reader.by is not None
        with insert.before(reader.node):
            _copy(insert, product, set(reader.by.nodes), copies)
        reader.node.replace_input_with(reader.by.node, copies[reader.by.node])


def _copy(
    insert: Inserter, site: fx.Node, nodes: set[fx.Node], copies: dict[fx.Node, fx.Node]
) -> None:
    """Copy those of ``nodes`` that read what has a copy; the others are what they were."""
    for node in sorted(nodes - copies.keys()):
        if not copies.keys().isdisjoint(node.all_input_nodes):
            copies[node] = _again(insert, site, node, copies)


def _again(
    insert: Inserter, site: fx.Node, node: fx.Node, copies: dict[fx.Node, fx.Node]
) -> fx.Node:
    given: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: copies.get(n, n))
    args, kwargs = given
    if node.target in FLAT_VIEWS:  # what it reads may lie otherwise
        return insert.reshape(site, *args)
    return insert.call(site, node.target, *args, **kwargs)
