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

import torch
from torch import fx

from nmcompile.codegen.kernel_spec import STORAGE, KernelSpec, Operand
from nmcompile.graph.aten import FLAT_VIEWS
from nmcompile.graph.insert import Inserter
from nmcompile.graph.prologue import Prologue
from nmcompile.masks.formats import Method
from nmcompile.ops.schemas import Compress, FusedCompress
from nmcompile.passes.plan import Kernels

aten = torch.ops.aten


@dataclass
class _Match:
    """A compression, the value that it reads (behind views) and that value's other readers."""

    node: fx.Node
    call: Compress
    base: fx.Node
    tail: list[fx.Node] = field(default_factory=list)  # views between base and node

    @property
    def others(self) -> list[fx.Node]:
        """Readers of the value, through views of it as well, besides this compression."""
        inside = {self.node, *self.tail}
        return [u for value in (self.base, *self.tail) for u in value.users if u not in inside]


def fuse_compress(kernels: Kernels) -> None:
    """Replace every ``nm.compress`` that a kernel can be generated for; note their specs."""
    for node in Compress.nodes(kernels.graph):
        match = _match(node, kernels.devices)
        if match is not None:
            kernels.specs.append(_fuse(kernels.graph, match, kernels.fuse))
    kernels.graph.eliminate_dead_code()


def _match(node: fx.Node, devices: tuple[str, ...]) -> _Match | None:
    call = Compress.of(node)
    value = call.x.meta["val"]
    fits = (
        value.device.type in devices
        and value.dtype in STORAGE
        and call.method in (Method.MSE, Method.MVUE)
        and value.is_contiguous()
        and len(set(call.dims)) == len(call.dims)
    )
    if not fits:
        return None
    match = _Match(node, call, call.x)
    while _keeps_order(match.base):
        match.tail.append(match.base)
        match.base = match.base.all_input_nodes[0]
    return match


def _keeps_order(node: fx.Node) -> bool:
    return node.target in FLAT_VIEWS and node.all_input_nodes[0].meta["val"].is_contiguous()


def _fuse(graph: fx.Graph, match: _Match, grow: bool) -> KernelSpec:
    node, call, base, others = match.node, match.call, match.base, match.others
    operand = call.x.meta["val"]
    prologue = Prologue(base, operand.shape)
    # Other readers wait for the kernel, which waits for its random numbers.
    if grow and (not others or call.seed is None or call.seed < base):
        prologue.grow()
    keep_dense = bool(others and prologue.statements)
    spec = KernelSpec(
        inputs=prologue.inputs,
        statements=prologue.statements,
        operands=(Operand(value=prologue.value, dims=call.dims, keep_dense=keep_dense),),
        n=call.n,
        m=call.m,
        method=call.method,  # type: ignore[arg-type]
        layout=call.layout,  # type: ignore[arg-type]
        dtype=str(operand.dtype).removeprefix("torch."),
    )
    insert = Inserter(graph)
    with insert.before(base.next if keep_dense else node):
        inputs = [prologue.flat(insert, node, i) for i in spec.inputs]
        mark = repr(node.meta["nm"]) if "nm" in node.meta else ""
        fused = FusedCompress(inputs, call.seed, call.streams, spec.to_json())
        kernel = insert.op(node, fused, mark=mark, name=spec.name)
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
