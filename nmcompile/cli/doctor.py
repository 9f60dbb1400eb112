"""``nmcompile doctor``: every path is tried once, and says what it found.

A probe that is broken is a finding; what this machine does not have is none.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import nmcompile
from nmcompile import cache, functional
from nmcompile.compressed import cusparselt, hardware
from nmcompile.execution.targets import target_of
from nmcompile.masks import reference
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.ops.schemas import Compress, Mm

Verdict = Literal["works", "absent", "broken"]


@dataclass(frozen=True)
class Finding:
    """What a probe found: of which path, whether it works, and a sentence."""

    path: str
    verdict: Verdict
    text: str
    seconds: float = 0.0


class Absent(Exception):
    """What the probe would try is not on this machine; the message says what."""


def probes() -> dict[str, Callable[[], str]]:
    """Every path by name; a probe returns a sentence, and raises where it does not work."""
    found: dict[str, Callable[[], str]] = {
        "backend": _registered,
        "cache": _cache,
        "masks on the CPU": lambda: _masks("cpu"),
        "a training step on the CPU": lambda: _step("cpu"),
        "sparse products on the CPU": lambda: _products("cpu"),
        "Triton": _triton,
    }
    if not torch.cuda.is_available():
        return {**found, "GPU": _no_gpu}
    for number in range(torch.cuda.device_count()):
        device = f"cuda:{number}"
        found |= {
            f"{device} layout": lambda d=device: _layout(d),  # type: ignore[misc]
            f"{device} masks": lambda d=device: _masks(d),  # type: ignore[misc]
            f"{device} sparse products": lambda d=device: _products(d),  # type: ignore[misc]
            f"{device} training step": lambda d=device: _step(d),  # type: ignore[misc]
        }
    return found


def examine() -> Iterator[Finding]:
    """Run every probe; one that fails is a finding and ends none of the others."""
    for path, probe in probes().items():
        start = time.perf_counter()
        verdict: Verdict = "works"
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                text = probe()
            ours = [str(w.message) for w in told if issubclass(w.category, nmcompile.NMWarning)]
            if ours:
                verdict, text = "broken", "; ".join(ours)
        except Absent as why:
            verdict, text = "absent", str(why)
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            verdict, text = "broken", f"{type(error).__name__}: {first}"
        yield Finding(path, verdict, text, round(time.perf_counter() - start, 2))


def versions() -> dict[str, str]:
    """What an issue must say of the machine."""
    found = {name: _version(name) for name in ("nmcompile", "torch", "triton", "nvidia-cusparselt")}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    compiler = os.environ.get("CXX", "")
    return {
        **found,
        "cuda of torch": str(torch.version.cuda),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "gpus": ", ".join(gpus) or "none",
        "CXX": compiler or "(not set)",
    }


def _version(name: str) -> str:
    if name == "nvidia-cusparselt":
        return str(hardware.cusparselt_version() or "none")
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# -- probes --------------------------------------------------------------------------------------


def _registered() -> str:
    if "nm_sparse" not in torch.compiler.list_backends():
        raise RuntimeError(
            'the name "nm_sparse" is not registered: install the package (pip install .), or give '
            "torch.compile the function nmcompile.nm_sparse"
        )
    return 'torch.compile(model, backend="nm_sparse")'


def _cache() -> str:
    path = cache.folder() / "doctor"
    cache.write(path, b"1")
    path.unlink()
    return str(cache.folder())


def _masks(device: str) -> str:
    """Every method against the oracle, bit for bit; random ones by their zeros."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    count = 0
    for method in Method:
        form = NMFormat(2, 4)
        dims = (-2, -1) if method is Method.TRANSPOSABLE else -1
        got = functional.prune(x.to(device), form, dims, method).cpu()
        count += 1
        if method.random:
            most = int((got.reshape(-1, 4) != 0).sum(1).max())
            if most > form.n:
                raise RuntimeError(f"{method} kept {most} of {form.m}")
            continue
        along = [0, 1] if method is Method.TRANSPOSABLE else [1]
        expected, _ = reference.prune_and_mask(x, None, 0, form.n, form.m, along, method)
        if not torch.equal(got, expected):
            raise RuntimeError(f"{method} differs from the oracle")
    how = "compiled kernels" if device == "cpu" else "Triton kernels"
    return f"{count} methods agree with the oracle ({how})"


def _products(device: str) -> str:
    target = target_of(device)
    if target.layout is None:
        raise Absent(target.reason)
    kind = torch.device(device).type
    dtype = torch.bfloat16
    g = torch.Generator().manual_seed(0)
    x = torch.randn(128, 256, generator=g).to(dtype).to(device)
    dense = torch.randn(64, 256, generator=g).to(dtype).to(device).t()
    pruned = functional.prune(x, "2:4")
    (packed,) = Compress(x, None, [0], [1], 2, 4, "mse", str(target.layout)).run()
    got = Mm(packed, dense, 128, str(target.layout)).run()
    error = float((got.float() - pruned.float() @ dense.float()).abs().max())
    if not error < 0.5:
        raise RuntimeError(f"a product is off by {error:.3g} (layout {target.layout})")
    if kind == "cpu":
        return "decoded and multiplied densely: for tests and research, never faster"
    return f"right to {error:.2g}, layout {target.layout}; whether it is faster, explain predicts"


def _layout(device: str) -> str:
    target = target_of(device)
    if target.layout is None:
        raise Absent(target.reason)
    if not target.layout.opaque and target.layout.by_cusparselt:
        x = torch.zeros(1, dtype=torch.bfloat16, device=device)
        if not cusparselt.reads(target.layout, x):
            raise RuntimeError(f"the library does not read layout {target.layout}")
    figures = "with figures" if target.figures else "no figures: nothing is predicted"
    return f"{target.gpu}: {target.layout}, {figures}"


def _step(device: str) -> str:
    """A linear layer, compiled, one step; its gradient is that of the pruned product."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 8, bias=False, device=device)
    x = torch.randn(4, 16, device=device)
    options: Any = {"policy": {"extends": "activations", "execution": "simulate"}}
    compiled = torch.compile(layer, backend=nmcompile.nm_sparse, options=options)
    y = compiled(x)
    y.sum().backward()
    expected = functional.prune(x, "2:4") @ layer.weight.detach().t()
    if not torch.allclose(y.detach(), expected, atol=1e-5):
        raise RuntimeError("the compiled product is not that of the pruned activation")
    return "compiled, pruned and differentiated"


def _triton() -> str:
    if not hardware.has_triton():
        raise Absent("not installed: needed for kernels on a GPU alone")
    return f"{_version('triton')}: kernels can be generated"


def _no_gpu() -> str:
    if torch.version.cuda is None and not torch.version.hip:
        raise Absent(f"torch {torch.__version__} is a build for the CPU: products are simulated")
    raise Absent("torch sees no CUDA device: products are simulated on the CPU")


# -- what is shown -------------------------------------------------------------------------------

_COLOURS = {"works": "green", "absent": "dim", "broken": "red"}


def show(as_json: bool) -> bool:
    """Print everything; whether nothing is broken."""
    terminal = Console(stderr=True)
    found = []
    with terminal.status("trying every path (a minute at most)") as status:
        for finding in examine():
            found.append(finding)
            status.update(f"tried {finding.path}")
    known = versions()
    if as_json:
        print(
            json.dumps(
                {"schema_version": 1, "versions": known, "findings": list(map(asdict, found))},
                indent=2,
            )
        )
    else:
        _print(found, known)
    return all(f.verdict != "broken" for f in found)


def _print(found: list[Finding], known: dict[str, str]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("path", "", "what was found"):
        table.add_column(column, overflow="fold", no_wrap=column != "what was found")
    for f in found:
        table.add_row(f.path, Text(f.verdict, _COLOURS[f.verdict]), Text(f.text))
    console.print(table)
    console.print("\nTo paste into an issue:\n")
    lines = [f"{name}: {value}" for name, value in known.items()]
    lines += [f"{f.path}: {f.verdict}: {f.text}" for f in found]
    console.print(Text("\n".join(["```", *lines, "```"])), soft_wrap=True)
