"""Hand generated kernels to Inductor as it takes a user's own Triton kernels (post-grad graphs).

    before   packed, dense = nm.fused_compress([y], seed, [1], spec)
    after    out   = aten.empty(...), aten.empty(...)
             wrote = triton_kernel_wrapper_functional(kernel, {"y": y, "packed0": out0, ...})
             packed, dense = wrote["packed0"], wrote["dense"]

Inductor then launches them itself: with its static launcher, inside CUDA graphs, from its caches.
Kernels with symbolic sizes, and those whose results the library packs again, stay operators.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.codegen import launch
from nmcompile.codegen.loader import with_warps
from nmcompile.compressed import cusparselt
from nmcompile.graph.aten import item_index
from nmcompile.graph.insert import Inserter
from nmcompile.ops.schemas import FusedCompress, spec_of
from nmcompile.passes.plan import Kernels

aten = torch.ops.aten


def lower_kernels(kernels: Kernels) -> None:
    """Lower every ``nm.fused_compress`` on CUDA with known sizes, where that is wanted."""
    if not kernels.lower:
        return
    for node in FusedCompress.nodes(kernels.graph):
        if can_lower(node):
            _lower(kernels.graph, node, kernels.autotune)
            kernels.lowered += 1


def can_lower(node: fx.Node) -> bool:
    """Whether Inductor can launch the kernel: on CUDA, with known sizes, as it was packed."""
    call = FusedCompress.of(node)
    first = call.inputs[0].meta["val"]
    values = [n.meta["val"] for n in node.all_input_nodes]
    static = all(isinstance(s, int) for v in values for s in v.shape)
    if first.device.type != "cuda" or not static or 0 in first.shape:
        return False
    layout = spec_of(call.spec).layout
    with _torch.real_tensors():
        return cusparselt.reads(layout, first)


def _lower(graph: fx.Graph, node: fx.Node, autotune: bool) -> None:
    call, insert = FusedCompress.of(node), Inserter(graph)
    spec = spec_of(call.spec)
    values = [x.meta["val"] for x in call.inputs]
    rows, columns = launch.operand_shape(spec, values)
    strides = launch.row_strides(spec, [v.stride() for v in values])
    names = launch.result_names(spec)
    addresses = [v.storage_offset() * v.element_size() for v in values]
    constants, grid, warps = launch.constants(
        spec, rows, columns, list(strides.values()), addresses, values[0].device
    )
    with insert.before(node):
        options = {"dtype": getattr(torch, spec.dtype), "device": values[0].device}
        empty = aten.empty.memory_format
        outputs = [insert.call(node, empty, list(v.shape), **options) for v in node.meta["val"]]
        tensors = launch.tensor_arguments(spec, call.inputs, outputs, call.seed)
        numbers = {"R": rows, "C": columns, **strides, **constants}
        numbers |= launch.stream_arguments(spec, call.streams)
        kernel = with_warps(spec, (4, 8) if autotune else (warps,))
        wrote = _torch.triton_kernel_call(graph, kernel, grid, tensors, numbers, names)
        wrote.meta = {k: v for k, v in node.meta.items() if k != "val"}
        wrote.meta["val"] = dict(zip(names, node.meta["val"], strict=True))
        results = [graph.call_function(operator.getitem, (wrote, name)) for name in names]
    for result, value in zip(results, node.meta["val"], strict=True):
        result.meta = {**node.meta, "val": value}
    for user in list(node.users):
        user.replace_all_uses_with(results[item_index(user)])
        graph.erase_node(user)
    graph.erase_node(node)
