"""The pass ``fuse_producers`` on graphs traced by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.passes.pipeline import POST_GRAD
from nmcompile.passes.plan import Kernels
from nmcompile.passes.run import run

nm = torch.ops.nm

#: Until every kernel is generated, and none is handed to Inductor.
PASSES = ("compute_unpacked", "fuse_producers", "compress_alike", "order_kernels")
FUSING = [p for p in POST_GRAD if p.name in PASSES]


def compress(x: torch.Tensor, dims: tuple[int, ...] = (1,), seed: Any = None) -> Any:
    """One ``nm.compress`` of ``x``, MVUE with a seed and MSE without."""
    method = "mse" if seed is None else "mvue"
    layout = "cusparselt_sm90"
    return nm.compress(x, seed, list(range(len(dims))), list(dims), 2, 4, method, layout)


def fused(
    f: Callable[..., Any], *args: torch.Tensor, fuse: bool = True
) -> tuple[fx.GraphModule, list[KernelSpec]]:
    """The graph of ``f`` after the pass, and the specs of its kernels."""
    decompositions = torch._decomp.core_aten_decompositions()
    gm = make_fx(f, decomposition_table=decompositions, tracing_mode="fake")(*args)
    kernels = Kernels(gm.graph, ("cpu",), fuse=fuse)
    run(FUSING, kernels, "graph")
    gm.graph.lint()
    gm.recompile()
    shapes = [[t.shape for t in tree_leaves(g(*args))] for g in (f, gm)]
    assert shapes[0] == shapes[1]
    return gm, kernels.specs


def half(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal values in bfloat16."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(torch.bfloat16)


def operators(spec: KernelSpec) -> list[str]:
    """The operators of a kernel's prologue."""
    return [s.target.split(".")[1] for s in spec.statements]
