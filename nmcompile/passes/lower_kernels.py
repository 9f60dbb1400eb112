"""Hand generated kernels to Inductor as it takes a user's own Triton kernels (post-grad graphs).

    before   packed, dense = nm.fused_compress([y], seed, [1], spec)
             pruned = nm.prune(w, None, 0, 2, 4, [0, 1], "transposable")
    after    out   = aten.empty_strided(...), aten.empty_strided(...)
             wrote = triton_kernel_wrapper_functional(kernel, {"y": y, "packed0": out0, ...})
             packed, dense = wrote["packed0"], wrote["dense"]
             ...

Inductor then launches them itself: with its static launcher, inside CUDA graphs, from its caches.
Kernels with symbolic sizes, those whose results the library packs again, and masks of types that
have no kernel stay operators.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.codegen import launch, masks
from nmcompile.codegen.loader import for_inductor
from nmcompile.codegen.mask_spec import STORAGE, MaskSpec
from nmcompile.codegen.printer import Spec
from nmcompile.compressed import cusparselt
from nmcompile.compressed.hardware import has_triton
from nmcompile.graph.aten import item_index
from nmcompile.graph.insert import Inserter
from nmcompile.ops.fused_schemas import FusedCompress, FusedPrune, spec_of
from nmcompile.ops.masks import fused_launch_of, launch_of
from nmcompile.ops.schemas import KeepMask, Mask, Prune
from nmcompile.passes.plan import Kernels

aten = torch.ops.aten
_MASKS = (Prune, KeepMask)


@dataclass(frozen=True)
class _Launch:
    """A kernel, and its arguments by name: ``inputs`` are nodes, ``results`` names and values."""

    spec: Spec
    grid: tuple[int, int, int]
    warps: int
    inputs: dict[str, fx.Node]
    results: dict[str, torch.Tensor]
    numbers: dict[str, Any]


def lower_kernels(kernels: Kernels) -> None:
    """Lower every operator that is one kernel on CUDA with known sizes, where that is wanted."""
    if not kernels.lower:
        return
    for node in kernel_nodes(kernels.graph):
        if can_lower(node):
            how = _of_compress(node) if node.target is FusedCompress.operator else _of_mask(node)
            _lower(kernels.graph, node, how, kernels.autotune)
            kernels.lowered += 1
            if isinstance(how.spec, MaskSpec):
                kernels.masks.append(how.spec)


def kernel_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Every node that is one generated kernel, if its type and sizes allow it."""
    return [node for cls in (FusedCompress, FusedPrune, *_MASKS) for node in cls.nodes(graph)]


def can_lower(node: fx.Node) -> bool:
    """Whether Inductor can launch the kernel: on CUDA, with known sizes, as it was packed."""
    values = [n.meta["val"] for n in node.all_input_nodes]
    first = values[0]
    static = all(isinstance(s, int) for v in values for s in (*v.shape, *v.stride()))
    if first.device.type != "cuda" or not static or 0 in first.shape:
        return False
    if node.target is FusedPrune.operator:
        return has_triton()
    if node.target is not FusedCompress.operator:
        return masks.has_kernel(first.dtype)
    spec = spec_of(FusedCompress.of(node).spec)
    layouts = {spec.layout, *(i.layout for i in spec.inputs if i.layout is not None)}
    with _torch.real_tensors():
        return all(cusparselt.reads(layout, first) for layout in layouts)


def mask_spec(node: fx.Node) -> MaskSpec | None:
    """The kernel of a node of ``mask_nodes`` with known sizes, were it on CUDA."""
    x = node.all_input_nodes[0].meta["val"]
    known = all(isinstance(s, int) for s in (*x.shape, *x.stride()))
    if node.target is not FusedPrune.operator:
        known = known and 0 not in x.shape and x.dtype in STORAGE
    return _mask_launch(node).spec if known else None


def mask_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Every node that is one mask, if its type and sizes allow it."""
    return [node for cls in (*_MASKS, FusedPrune) for node in cls.nodes(graph)]


def _of_compress(node: fx.Node) -> _Launch:
    call = FusedCompress.of(node)
    spec = spec_of(call.spec)
    values = [x.meta["val"] for x in call.inputs]
    rows, columns = launch.operand_shape(spec, values)
    strides = launch.row_strides(spec, [v.stride() for v in values])
    addresses = [v.storage_offset() * v.element_size() for v in values]
    constants, grid, warps = launch.constants(
        spec, rows, columns, list(strides.values()), addresses, values[0].device
    )
    results = dict(zip(launch.result_names(spec), node.meta["val"], strict=True))
    inputs = launch.tensor_arguments(spec, call.inputs, list(results.values()), call.seed)
    inputs = {name: x for name, x in inputs.items() if name not in results}
    numbers = {"R": rows, "C": columns, **strides, **constants}
    numbers |= launch.stream_arguments(spec, call.streams)
    return _Launch(spec, grid, warps, inputs, results, numbers)


def _mask_call(node: fx.Node) -> Mask | FusedPrune:
    return next(cls.of(node) for cls in (*_MASKS, FusedPrune) if node.target is cls.operator)


def _mask_launch(node: fx.Node) -> masks.MaskLaunch:
    call, value = _mask_call(node), node.meta["val"]
    if isinstance(call, FusedPrune):
        given = [x.meta["val"] for x in call.inputs]
        return fused_launch_of(replace(call, inputs=given), value[0])
    return launch_of(replace(call, x=call.x.meta["val"]), value)


def _of_mask(node: fx.Node) -> _Launch:
    call, how, value = _mask_call(node), _mask_launch(node), node.meta["val"]
    read, written = ([call.x], [value]) if isinstance(call, Mask) else (call.inputs, value)
    pointers = masks.tensors(how.spec, read, written)
    drawn = masks.random_arguments(how.spec, call.seed, call.stream)
    inputs = {k: v for k, v in (pointers | drawn).items() if isinstance(v, fx.Node)}
    results = {k: v for k, v in pointers.items() if k not in inputs}
    numbers = {k: v for k, v in drawn.items() if k not in inputs} | how.numbers | how.constants
    return _Launch(how.spec, how.grid, how.warps, inputs, results, numbers)


def _lower(graph: fx.Graph, node: fx.Node, how: _Launch, autotune: bool) -> None:
    insert, names = Inserter(graph), list(how.results)
    with insert.before(node):
        outputs = {name: _empty(insert, node, value) for name, value in how.results.items()}
        warps = (4, 8) if autotune else (how.warps,)
        kernel = for_inductor(how.spec, warps, tuple(how.inputs), tuple(names))
        tensors = how.inputs | outputs
        wrote = _torch.triton_kernel_call(graph, kernel, how.grid, tensors, how.numbers, names)
        wrote.meta |= {k: v for k, v in node.meta.items() if k not in ("val", "eager_input_vals")}
        wrote.meta["val"] = how.results
        results = [graph.call_function(operator.getitem, (wrote, name)) for name in names]
    for result, value in zip(results, how.results.values(), strict=True):
        result.meta = {**node.meta, "val": value}
    if isinstance(node.meta["val"], torch.Tensor):
        node.replace_all_uses_with(results[0])
    for user in list(node.users):
        user.replace_all_uses_with(results[item_index(user)])
        graph.erase_node(user)
    graph.erase_node(node)


def _empty(insert: Inserter, node: fx.Node, like: torch.Tensor) -> fx.Node:
    options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    shape, stride = list(like.shape), list(like.stride())
    return insert.call(node, aten.empty_strided.default, shape, stride, **options)
