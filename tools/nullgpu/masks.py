"""Every kind of mask on the null GPU: how many launches it takes, and whether the host waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nmcompile import functional
from tools.nullgpu.expectations import Measured, count
from tools.nullgpu.log import Log, recorded

SIZE = (4096, 4096)
_PRUNED = (  # dtype, format, method
    ("bfloat16", "2:4", "mse"),
    ("bfloat16", "2:4", "mvue"),
    ("bfloat16", "4:8", "mvue"),
    ("bfloat16", "2:4", "approx-mvue"),
    ("bfloat16", "2:4", "uniform"),
    ("bfloat16", "2:4", "transposable"),
    ("float16", "1:4", "mse"),
    ("float32", "2:4", "mvue"),
)


def kinds() -> dict[str, Callable[[Tensor], Tensor]]:
    """Masks by name; each takes a tensor of the dtype that its name begins with."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for dtype, form, method in _PRUNED:
        for name in ("prune", "keep_mask"):
            mask = getattr(functional, name)
            dims = (-2, -1) if method == "transposable" else -1
            found[f"{dtype} {name} {form} {method}"] = _bound(mask, form, dims, method)
    return found


def _bound(
    mask: Callable[..., Tensor], form: str, dims: int | tuple[int, int], method: str
) -> Callable[[Tensor], Tensor]:
    return lambda x: mask(x, form, dims, method)


def expectations() -> Iterator[Measured]:
    """Run each twice; what is compiled or probed once counts for nobody."""
    for name, mask in kinds().items():
        dtype = getattr(torch, name.split(" ")[0])
        x = torch.zeros(SIZE, dtype=dtype, device="cuda")
        mask(x)
        with recorded() as log:
            mask(x)
        yield count("launches of a mask", name, log.launches)
        yield count("host waits of a mask", name, log.waits)
        yield count("calls that a GPU refuses", f"{name}, captured", captured(mask, x))


def captured(mask: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    """What a GPU refuses of the mask in a CUDA graph, or that the graph has nothing to launch."""
    graph = torch.cuda.CUDAGraph()
    try:
        with recorded() as log, torch.cuda.graph(graph):
            mask(x)
    except RuntimeError as error:
        return [str(error)]
    start = log.lines.index("CAPTURE begin")
    inside = Log(log.lines[start : log.lines.index("CAPTURE end")])
    return log.faults or ([] if inside.launches else ["nothing was captured"])
