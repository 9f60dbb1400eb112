"""Let Inductor call the sparse library itself where it takes the operands as they are (post-grad).

    before   nm.mm(packed, w [K,N], M, layout)
    after    nm.library_mm(packed, w, algorithm)      for which Inductor calls compressed.plans.mm

``nm.mm`` pads, copies and checks; that costs the host more than the call. What is static, aligned
and without gaps needs none of it. The library checks no strides, so Inductor is told to keep them.
"""

from __future__ import annotations

import torch
from torch import fx

from nmcompile import _cuda, _torch
from nmcompile.compressed import algorithms, cusparselt, plans
from nmcompile.compressed.layouts import Layout
from nmcompile.graph.insert import Inserter
from nmcompile.ops.schemas import LibraryMm, Mm
from nmcompile.passes.plan import Kernels


def lower_products(kernels: Kernels) -> None:
    """Replace every ``nm.mm`` that cuSPARSELt can do alone, where that is wanted."""
    if not kernels.lower:
        return
    for node in [n for n in Mm.nodes(kernels.graph) if library_takes(n)]:
        _cuda.call_for(LibraryMm.operator, plans.__name__, plans.mm.__name__)
        call, insert = Mm.of(node), Inserter(kernels.graph)
        with insert.before(node):
            mark = repr(node.meta["nm"]) if "nm" in node.meta else ""
            direct = LibraryMm(
                call.packed, call.dense, call.bias, call.transpose_result, _algorithm(call)
            )
            new = insert.op(node, direct, mark=mark, name="library_mm")
        node.replace_all_uses_with(_torch.keep_strides(new))
        kernels.graph.erase_node(node)


def library_takes(node: fx.Node) -> bool:
    """Whether an ``nm.mm`` pads and copies nothing, on CUDA, in a layout of cuSPARSELt."""
    call = Mm.of(node)
    layout, dense = Layout.parse(call.layout), call.dense.meta["val"]
    tensors = [x.meta["val"] for x in (call.packed, call.dense, call.bias) if x is not None]
    sizes = [call.rows, *(s for x in tensors for s in x.shape)]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return False
    k, columns = dense.shape
    return bool(
        dense.device.type == "cuda"
        and layout.by_cusparselt
        and dense.dtype in cusparselt.DTYPES
        and layout.padded(call.rows, k) == (call.rows, k)
        and columns % 8 == 0
        and (dense.is_contiguous() or dense.t().is_contiguous())
        and all(x.is_contiguous() for x in tensors if x is not dense)
        and all(_is_aligned(x) for x in tensors)
    )


def _algorithm(call: Mm) -> int:
    """Timed here: the device is there, and nothing runs yet."""
    how = Layout.parse(call.layout), call.transpose_result, call.bias is not None
    return algorithms.fastest_for(call.rows, call.dense.meta["val"], *how)


def _is_aligned(x: torch.Tensor) -> bool:
    """Inductor copies an input whose address is not what it was traced with."""
    offset = x.storage_offset()
    return isinstance(offset, int) and offset * x.element_size() % 16 == 0
