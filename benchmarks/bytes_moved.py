"""Bytes that a training step moves outside of its products and attention, by Inductor's own count.

    python -m benchmarks.bytes_moved                       # every network and variant
    python -m benchmarks.bytes_moved --network gpt2 --each

Inductor's scheduler is asked, once its kernels are chosen, which buffers each reads and writes; a
buffer counts once a kernel. Nothing is run. The networks are those of the GPU check with every
extent but the depth divided by 16, so that the elements of an activation are divided by 256 and
the ratios stay. On a CPU the compressed operands of sparse products are made as on a GPU, and
Inductor's fusions are those of its CPU code, which differ a little.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import records
from benchmarks.gpu_check.cases import networks

RESULTS = records.RESULTS / "bytes_moved.csv"
SMALLER = 16
_SCALE = SMALLER**2 / 1e9
COLUMNS = ("other GB", "compress GB", "both GB", "over dense")
NETWORKS = {
    "llama": (networks.llama, networks.LlamaShape(), ("width", "hidden", "context", "vocabulary")),
    "gpt2": (
        networks.gpt2,
        networks.GPT2Shape(),
        ("width", "context", "vocabulary"),
    ),
}
#: Compiler options by variant; None is plain Inductor.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "full, unfused": {"nm.kernels": "reference"},
    "full": {"nm.kernels": "generate"},
    "full-exact, unfused": {"nm.kernels": "reference"},
    "full-exact": {"nm.kernels": "generate"},
}
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "sparse_mm", "attention")


@dataclass(frozen=True)
class Kernel:
    """One kernel of the step: ``kind`` is "product", "compress" or "other"; bytes moved."""

    kind: str
    name: str
    bytes: int


@contextmanager
def counted() -> Iterator[list[Kernel]]:
    """Collect the kernels of all graphs that are compiled inside."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.scheduler import Scheduler

    found: list[Kernel] = []
    codegen = Scheduler.codegen

    def noted(scheduler: Any) -> Any:
        found.extend(_kernel(node) for node in scheduler.nodes)
        return codegen(scheduler)

    def nothing(*_: Any, **__: Any) -> Any:
        return lambda *args: None

    # The step runs, so that the backward is compiled, but its C++ is neither built nor needed.
    with (
        mock.patch.multiple(Scheduler, codegen=noted),
        mock.patch.multiple(AsyncCompile, cpp_pybinding=nothing),
    ):
        yield found


def _kernel(node: Any) -> Kernel:
    from torch._inductor import ir
    from torch._inductor.scheduler import ExternKernelSchedulerNode

    moved = int(node.get_read_write_buffers_sizes())
    ops = [snode.node for snode in node.get_nodes()]
    called = ops[0]
    if not isinstance(node, ExternKernelSchedulerNode):
        names = {str(o.target) for op in ops for o in getattr(op, "origins", ())}
        return Kernel("other", " ".join(sorted(names)), moved)
    name = str(getattr(called, "op_overload", None) or getattr(called, "python_kernel_name", ""))
    name = name if name != "None" else type(called).__name__
    words = name.replace(".", "_").split("_")
    if "compress" in words or isinstance(called, ir.UserDefinedTritonKernel):
        kind = "compress"
    elif any(word in name for word in ("attention", "sparse_mm")) or set(words) & set(_PRODUCTS):
        kind = "product"
    else:
        kind = "other"
    return Kernel(kind, name, moved)


def kernels_of(network: str, variant: str, depth: int = 2) -> list[Kernel]:
    """The kernels of one training step of a network, without the optimizer."""
    make, shape, extents = NETWORKS[network]
    sizes = {name: getattr(shape, name) // SMALLER for name in extents}
    small = replace(shape, depth=depth, **sizes)
    model, batch = make(small, "cpu")
    options = VARIANTS[variant]
    torch.compiler.reset()
    with counted() as found, torch._inductor.config.patch(force_disable_caches=True):
        if options is None:
            step = torch.compile(model)
        else:
            recipe = variant.partition(",")[0]
            policy = {"extends": recipe, "execution": "sparse"}
            step = torch.compile(model, backend="nm_sparse", options={"policy": policy, **options})
        _compile(step, batch)
    return found


def _compile(step: nn.Module, batch: Any) -> None:
    step(*batch).backward()


def main(
    network: Annotated[str, typer.Option(help=f"Of: {', '.join(NETWORKS)}; default: all.")] = "",
    only: Annotated[str, typer.Option(help=f"A variant of: {'; '.join(VARIANTS)}.")] = "",
    each: Annotated[bool, typer.Option(help="List every kernel.")] = False,
    out: Annotated[Path | None, typer.Option(help=f"CSV; {RESULTS.name} for everything.")] = None,
) -> None:
    for word, known in ((network, NETWORKS), (only, VARIANTS)):
        if word and word not in known:
            raise typer.BadParameter(f"{word!r}: choose from {', '.join(known)}")
    console = Console(width=140, highlight=False)
    table = Table(
        "network", "variant", "kernels", "other GB", "compress GB", "both GB", "over dense"
    )
    rows = []
    for name in [network] if network else NETWORKS:
        dense = 0.0
        for variant in [only] if only else VARIANTS:
            kernels = kernels_of(name, variant)
            other, compress = (
                _SCALE * sum(k.bytes for k in kernels if k.kind == kind)
                for kind in ("other", "compress")
            )
            dense = dense or other + compress
            found = (other, compress, other + compress, (other + compress) / dense)
            cells = [f"{figure:.3f}" for figure in found]
            table.add_row(name, variant, str(len(kernels)), *cells)
            rows.append(
                {"network": name, "variant": variant, "kernels": len(kernels)}
                | dict(
                    zip(("other_GB", "compress_GB", "both_GB", "over_dense"), cells, strict=True)
                )
                | records.origin("torch", "commit", "time")
            )
            for k in kernels if each else ():
                if k.bytes:
                    line = f"{k.kind:9} {k.bytes * _SCALE:8.3f}  {k.name[:110]}"
                    console.print(line, markup=False)
    console.print(table)
    if out or not (only or network):
        records.write(out or RESULTS, rows)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    typer.run(main)
