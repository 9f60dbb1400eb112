"""Grow pointwise producers into the kernel that compresses their result (post-grad graphs).

    before   h = gelu(y);  a, b = nm.compress(h, seed, [1, 2], [1, 0], 2, 4, "mvue", layout)
             other(h)
    after    a, b, h = nm.fused_compress([y], seed, [1, 2], spec)
             other(h)                                  h is written by the kernel, once

A producer joins when the kernel can compute it (``codegen.pointwise``) and nobody else reads it;
the operand itself may have other readers. Views that keep the order in memory are nothing.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

import nmcompile.ops.fused  # noqa: F401  (registers torch.ops.nm)
from nmcompile.codegen.kernel_spec import STORAGE, KernelSpec
from nmcompile.codegen.pointwise import VIEWS
from nmcompile.graph.insert import Inserter
from nmcompile.masks.formats import Method
from nmcompile.passes.prologue import Prologue

aten = torch.ops.aten


@dataclass
class _Match:
    """A compression, the value that it reads (behind views) and that value's other readers."""

    node: fx.Node
    base: fx.Node
    tail: list[fx.Node] = field(default_factory=list)  # views between base and node

    @property
    def others(self) -> list[fx.Node]:
        """Readers of the value, through views of it as well, besides this compression."""
        inside = {self.node, *self.tail}
        return [u for value in (self.base, *self.tail) for u in value.users if u not in inside]


def fuse_compress(graph: fx.Graph, devices: tuple[str, ...] = ("cuda",)) -> list[KernelSpec]:
    """Replace every ``nm.compress`` that a kernel can be generated for; returns their specs.

    Args:
        graph: a forward or backward graph, after the partitioner.
        devices: where kernels are wanted.
    """
    target = torch.ops.nm.compress.default
    specs = []
    for node in list(graph.find_nodes(op="call_function", target=target)):
        match = _match(node, devices)
        if match is not None:
            specs.append(_fuse(graph, match))
    graph.eliminate_dead_code()
    return specs


def _match(node: fx.Node, devices: tuple[str, ...]) -> _Match | None:
    x, method = node.args[0], node.args[6]
    assert isinstance(x, fx.Node)
    value = x.meta["val"]
    dims: Any = node.args[3]
    fits = (
        value.device.type in devices
        and value.dtype in STORAGE
        and method in (Method.MSE, Method.MVUE)
        and value.is_contiguous()
        and len(set(dims)) == len(dims)
    )
    if not fits:
        return None
    match = _Match(node, x)
    while _keeps_order(match.base):
        match.tail.append(match.base)
        match.base = match.base.all_input_nodes[0]
    return match


def _keeps_order(node: fx.Node) -> bool:
    return node.target in VIEWS and node.all_input_nodes[0].meta["val"].is_contiguous()


def _fuse(graph: fx.Graph, match: _Match) -> KernelSpec:
    node, base, others = match.node, match.base, match.others
    arguments: Any = node.args
    x, seed, streams, dims, n, m, method, layout = arguments
    prologue = Prologue(base, x.meta["val"].shape)
    # Other readers wait for the kernel, which waits for its random numbers.
    if not others or seed is None or seed < base:
        prologue.grow()
    keep_dense = bool(others and prologue.statements)
    spec = KernelSpec(
        inputs=prologue.inputs,
        statements=prologue.statements,
        dims=dims,
        n=n,
        m=m,
        method=method,
        layout=layout,
        dtype=str(x.meta["val"].dtype).removeprefix("torch."),
        keep_dense=keep_dense,
    )
    insert = Inserter(graph)
    with insert.before(base.next if keep_dense else node):
        inputs = [prologue.flat(insert, node, i) for i in spec.inputs]
        mark = repr(node.meta["nm"]) if "nm" in node.meta else ""
        given = (inputs, seed, streams, spec.to_json())
        op = torch.ops.nm.fused_compress.default
        kernel = insert.call(node, op, *given, mark=mark, name=spec.name)
        if keep_dense:
            dense = insert.call(node, operator.getitem, kernel, len(spec.dims))
            shape = insert.sizes(node, base)
            view = insert.call(node, aten.view.default, dense, shape, name="dense")
            for user in others:
                user.replace_input_with(base, view)
            for step in match.tail:
                step.replace_input_with(base, view)
    node.replace_all_uses_with(kernel)
    graph.erase_node(node)
    return spec
