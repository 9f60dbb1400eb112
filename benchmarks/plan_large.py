"""Time and memory of ``nmcompile.explain`` for a Llama of 70 billion parameters.

    python -m benchmarks.plan_large                        # all variants, into benchmarks/results/
    python -m benchmarks.plan_large --depth 2 --out /tmp/quick.csv

80 layers, 8,192 wide, grouped-query attention, bfloat16, 4,096 tokens, on tensors that take no
memory. Each variant has a process of its own. CPU time counts user and system time, and hardly
depends on what else the machine does.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import records
from benchmarks.gpu_check.cases.networks import Llama, LlamaShape

RESULTS = records.RESULTS / "plan_large.csv"
SHAPE = LlamaShape(
    width=8192, hidden=28672, heads=64, kv_heads=8, depth=80, vocabulary=128256, batch=1
)


@dataclass(frozen=True)
class Variant:
    """Where the tensors are, which blocks are planned once, and the most that it may take."""

    place: str
    each: str | None
    seconds: float  # on an idle core
    gigabytes: float = 2.0


VARIANTS = {
    "meta": Variant("meta", None, 120),
    "fake": Variant("fake", None, 120),
    "fake, each": Variant("fake", "blocks.*", 30),
}


@contextmanager
def _bfloat16() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def measure(variant: str, depth: int) -> dict[str, Any]:
    """One variant, in this process."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    import nmcompile

    case = VARIANTS[variant]
    with _bfloat16(), torch.device("meta") if case.place == "meta" else FakeTensorMode():
        model = Llama(replace(SHAPE, depth=depth))
        tokens = torch.zeros(SHAPE.batch, SHAPE.context, dtype=torch.long)
        start, cpu = time.perf_counter(), time.process_time()
        report = nmcompile.explain(model, tokens, tokens, each=case.each)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    totals = report.totals
    return {
        "variant": variant,
        "depth": depth,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "cpu seconds": cpu,
        "most seconds": case.seconds,
        "most GB": case.gigabytes,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "rows": len(report.sites),
        "products": totals.sites,
        "flops": totals.flops,
        "eager flops": totals.eager_flops,
        "pruned share": totals.pruned_share,
    }


def in_process(variant: str, depth: int) -> dict[str, Any]:
    """The same in a process of its own."""
    call = f"measure({variant!r}, {depth})"
    code = f"import json; from benchmarks.plan_large import measure; print(json.dumps({call}))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(
    only: Annotated[str, typer.Option(help=f"One of: {'; '.join(VARIANTS)}. Default: all.")] = "",
    depth: Annotated[int, typer.Option(help="Layers.")] = SHAPE.depth,
    out: Annotated[Path, typer.Option(help="The CSV file.")] = RESULTS,
) -> None:
    if only and only not in VARIANTS:
        raise typer.BadParameter(f"{only!r}: write one of {'; '.join(VARIANTS)}")
    for variant in [only] if only else VARIANTS:
        row = {
            **in_process(variant, depth),
            **records.origin("machine", "torch", "nmcompile", "commit", "time"),
        }
        records.replace(out, [row], ("variant", "depth"))
        print(
            f"{variant}: {row['seconds']:.1f} s ({row['cpu seconds']:.1f} s of CPU), at most "
            f"{row['most seconds']:g}; {row['peak GB']:.2f} GB, at most {row['most GB']:g}; "
            f"{row['products']} products in {row['rows']} rows"
        )


if __name__ == "__main__":
    typer.run(main)
