"""Training steps of one layer as of Llama 3 8B, under several recipes, on the null GPU.

Memory is the allocator's, launches and waits are the log's, and the arguments of every kernel that
Inductor launches are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import nmcompile
from benchmarks.gpu_check.cases.networks import LlamaBlock, LlamaShape
from nmcompile import Policy
from tools.nullgpu.expectations import Measured, count
from tools.nullgpu.log import Log, recorded

SHAPE = LlamaShape()
RECIPES = ("full", "full-exact", "weights")
LINEAR_LAYERS = 7
_COMPRESSED = 9 / 16  # bytes of a packed operand over those of the operand
_RESULT = "packed"  # how a compress kernel's results are named


class Step(NamedTuple):
    """What one step of a compiled layer did."""

    peak: int
    log: Log
    wide: list[str]


def measure(recipe: str | None, shape: LlamaShape = SHAPE, device: str = "cuda") -> Step:
    """The third step of a layer; ``recipe`` None is dense.

    ``peak`` is in bytes, beyond the parameters, the input and the gradient of the output.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.device(device):
        layer = LlamaBlock(shape).to(torch.bfloat16)
        x = torch.zeros(shape.batch, shape.context, shape.width, dtype=torch.bfloat16)
        angles = torch.zeros(shape.context, shape.width // shape.heads, dtype=torch.bfloat16)
    x.requires_grad_()
    dy = torch.zeros_like(x)
    backend: Any = "inductor" if recipe is None else nmcompile.nm_sparse
    keywords: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    if recipe is not None:  # sparse wherever it can be, whatever it gains
        keywords["options"] = {"policy": Policy(extends=recipe, execution="sparse", margin=1e-6)}
    run = torch.compile(layer, backend=backend, **keywords)

    def step() -> None:
        run(x, angles, angles).backward(dy)
        layer.zero_grad(set_to_none=True)
        x.grad = None

    with seen_arguments() as wide:
        step()
    if recipe and not any(s.execution == "sparse" for s in nmcompile.last_report().sites):
        raise RuntimeError(f"{recipe}: nothing runs sparse, so nothing would be shown")
    step()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with recorded() as log:
        step()
    return Step(torch.cuda.max_memory_allocated(device) - before, log, sorted(wide))


def expectations() -> Iterator[Measured]:
    """Measure every recipe against dense."""
    dense = measure(None)
    yield count("host waits in a step", "layer, dense", dense.log.waits)
    for recipe in RECIPES:
        found, where = measure(recipe), f"layer, {recipe}"
        yield count("inputs wider than the operand", where, found.wide)
        yield count("host waits in a step", where, found.log.waits)
        yield count("calls that a GPU refuses", where, found.log.faults)
        memory = f"peak memory of a step over dense, {recipe}"
        gib = [peak / 2**30 for peak in (found.peak, dense.peak)]
        detail = "{:.2f} GiB, dense {:.2f}".format(*gib)
        if recipe == "weights":
            more = len(found.log.launches) - len(dense.log.launches)
            name = "launches per linear layer beyond dense, weights"
            yield Measured(name, where, more / LINEAR_LAYERS, _most_launched(found.log))
        else:
            yield Measured(memory, where, found.peak / dense.peak, detail)


def _most_launched(log: Log) -> str:
    names = [line.split(" ", 2)[-1][:60] for line in log.launches]
    most = sorted(set(names), key=lambda name: -names.count(name))[:3]
    return "; ".join(f"{names.count(name)} x {name}" for name in most)


@contextmanager
def seen_arguments() -> Iterator[set[str]]:
    """Collect the inputs of compress kernels that are wider than they may be.

    Wider than 16 bits an element, and larger than the operand that the kernel compresses.
    """
    heuristics = torch._inductor.runtime.triton_heuristics.CachingAutotuner
    original, wide = heuristics.run, set()

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        signature = self.triton_meta["signature"].items()
        names = [name for name, kind in signature if kind != "constexpr"]
        tensors = {n: a for n, a in zip(names, args, strict=False) if isinstance(a, Tensor)}
        wide.update(f"{self.fn.__name__}: {text}" for text in wide_inputs(tensors))
        return original(self, *args, **kwargs)

    heuristics.run = run
    try:
        yield wide
    finally:
        heuristics.run = original


def wide_inputs(tensors: dict[str, Tensor]) -> list[str]:
    """Those of a compress kernel of more than 16 bits that are larger than its operand.

    Nothing for a kernel that compresses nothing.
    """
    packed = [t for name, t in tensors.items() if name.startswith(_RESULT)]
    if not packed:
        return []
    operand = max(t.nbytes for t in packed) / _COMPRESSED
    return [
        f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
        for name, t in tensors.items()
        if t.element_size() > 2 and t.nbytes > operand
    ]
