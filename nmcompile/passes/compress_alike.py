"""Pack what a kernel reads at the places that its operand keeps (post-grad graphs).

    before   (packed,) = nm.fused_compress([gate, up], spec)
             kept = nm.compress_like(gate, packed);  kept_1 = nm.compress_like(up, packed)
    after    packed, kept, kept_1 = nm.fused_compress([gate, up], spec)

The kernel has gate and up at hand, and where the survivors lie; ``nm.compress_like`` would read
both again.
"""

from __future__ import annotations

import operator
from dataclasses import replace

from torch import fx

from nmcompile.graph.aten import item_index, items
from nmcompile.graph.insert import Inserter
from nmcompile.graph.order import is_same_memory
from nmcompile.ops.fused_schemas import FusedCompress, spec_of
from nmcompile.ops.schemas import CompressLike
from nmcompile.passes.plan import Kernels


def compress_alike(kernels: Kernels) -> None:
    """Let every kernel that can write what is packed like its operand."""
    for node in FusedCompress.nodes(kernels.graph):
        found = alike(kernels, node)
        if found:
            _rewrite(kernels, node, found)


def alike(kernels: Kernels, kernel: fx.Node) -> dict[fx.Node, str]:
    """The ``nm.compress_like`` of inputs of the kernel, and which inputs they are."""
    call = FusedCompress.of(kernel)
    spec = spec_of(call.spec)
    if not kernels.fuse or spec.method != "mse" or spec.dims != (1,):
        return {}
    inputs = {
        _origin(node): given.name
        for given, node in zip(spec.inputs, call.inputs, strict=True)
        if given.shape == "full" and given.dtype == spec.dtype
    }
    found: dict[fx.Node, str] = {}
    for packed in items(kernel, 0):
        for user in packed.users:
            if user.target is CompressLike.operator and CompressLike.of(user).packed is packed:
                name = inputs.get(_origin(CompressLike.of(user).x))
                if name is not None:
                    found[user] = name
    return found


def _origin(node: fx.Node) -> fx.Node:
    """The value whose elements these are, in their order in memory."""
    while is_same_memory(node):
        node = node.all_input_nodes[0]
    return node


def _rewrite(kernels: Kernels, kernel: fx.Node, found: dict[fx.Node, str]) -> None:
    call, insert = FusedCompress.of(kernel), Inserter(kernels.graph)
    old = spec_of(call.spec)
    (operand,) = old.operands
    names = tuple(dict.fromkeys(found.values()))
    spec = old.model_copy(update={"operands": (operand.model_copy(update={"alike": names}),)})
    packed = len(old.dims)
    mark = repr(kernel.meta["nm"]) if "nm" in kernel.meta else ""
    with insert.before(kernel):
        new = insert.op(kernel, replace(call, spec=spec.to_json()), mark=mark, name=spec.name)
        parts = [insert.call(kernel, operator.getitem, new, k) for k in range(len(new.meta["val"]))]
    for node, name in found.items():
        node.replace_all_uses_with(parts[packed + names.index(name)])
        kernels.graph.erase_node(node)
    for item in list(kernel.users):
        position = item_index(item)
        dense = position >= packed
        item.replace_all_uses_with(parts[position + (len(names) if dense else 0)])
        kernels.graph.erase_node(item)
    kernels.graph.erase_node(kernel)
    for part in parts:
        if not part.users:
            kernels.graph.erase_node(part)
    kernels.specs[kernels.specs.index(old)] = spec
