"""Compute what a product reads of packed operands in one kernel (post-grad graphs).

    before   g, u = nm.decompress(kept), nm.decompress(kept_1)
             h = where(nm.unpack_mask(kept), silu(g) * u, 0)
             nm.mm(dy_t, h)
    after    h = nm.fused_compress([kept, kept, kept_1], spec)      a kernel that compresses nothing
             nm.mm(dy_t, h)

An unpacked operand lies in memory in full; what is computed from it by such a kernel is all that is
written. Values that Inductor computes for readers of its own stay Inductor's.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from nmcompile.codegen.kernel_spec import PACKED, STORAGE, KernelSpec, computing
from nmcompile.graph.aten import is_view
from nmcompile.graph.insert import Inserter
from nmcompile.graph.memory import Memory, is_inlined, readers, reads_inside
from nmcompile.graph.prologue import Prologue
from nmcompile.graph.unpacked import unpacked
from nmcompile.ops.fused_schemas import FusedCompress
from nmcompile.ops.schemas import Compress
from nmcompile.passes.plan import Kernels

aten = torch.ops.aten


def compute_unpacked(kernels: Kernels) -> None:
    """Give every such value a kernel of its own; note their specs."""
    many = -1
    while many != len(kernels.specs):  # what a kernel computes, Inductor need not read for it
        many = len(kernels.specs)
        kernels.graph.eliminate_dead_code()  # and what nobody reads is no reader
        for node, prologue in computable(kernels):
            kernels.specs.append(_write(kernels.graph, node, prologue))


def computable(kernels: Kernels) -> Iterator[tuple[fx.Node, Prologue]]:
    """Values that such a kernel computes, and how."""
    if not kernels.fuse:
        return
    memory = Memory(Compress.nodes(kernels.graph))
    for node, source in _followers(kernels.graph).items():
        if _is_read_by_products(node, memory) and node.meta["val"].device.type in kernels.devices:
            prologue = Prologue([node], source.meta["val"].shape, memory)
            if prologue.statements and any(i.shape in PACKED for i in prologue.inputs):
                yield node, prologue


def _followers(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """What is computed from an unpacked operand and has its size, in graph order; and which."""
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if unpacked(node) is not None:
            found[node] = node
        elif is_inlined(node):
            sources = (found[n] for n in node.all_input_nodes if n in found)
            source = next((s for s in sources if _size(s) == _size(node)), None)
            if source is not None:
                found[node] = source
    return {node: source for node, source in found.items() if node is not source}


def _size(node: fx.Node) -> str:
    value = node.meta.get("val")
    return str(value.numel()) if isinstance(value, torch.Tensor) else ""


def _is_read_by_products(node: fx.Node, memory: Memory) -> bool:
    """Whether the value is written for others than Inductor's kernels alone."""
    value = node.meta["val"]
    plain = value.dtype in STORAGE and value.is_contiguous()
    if is_view(node) or not plain or not memory.holds(node):
        return False
    return not any(reads_inside(reader) for reader in readers(node))


def _write(graph: fx.Graph, node: fx.Node, prologue: Prologue) -> KernelSpec:
    spec = computing(
        prologue.inputs,
        prologue.statements,
        prologue.value(node),
        node.meta["val"].dtype,
        keep_dense=True,
        layout=next(i.layout for i in prologue.inputs if i.layout is not None),
    )
    insert = Inserter(graph)
    with insert.before(node.next):
        inputs = [prologue.flat(insert, node, i) for i in spec.inputs]
        kernel = FusedCompress(inputs, None, [], spec.to_json())
        written = insert.op(node, kernel, mark="from packed operands", name=spec.name)
        dense = insert.call(node, operator.getitem, written, 0)
        result = insert.reshape(node, dense, insert.sizes(node, node))
    node.replace_all_uses_with(result)
    return spec
