"""Generated kernels as files: written once, named by their content, imported once a process."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmcompile import cache
from nmcompile.codegen.printer import Spec, print_kernel

log = logging.getLogger(__name__)


def kernel_path(spec: Spec) -> Path:
    """The kernel's file, beside Inductor's cache; written if it is not there."""
    source = print_kernel(spec)
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    name = f"{spec.name}_{digest}.py"
    path = cache.folder() / "kernels" / name
    if _holds(path, source):
        return path
    try:
        cache.write(path, source.encode())
    except OSError as error:
        log.warning("kernel %s is kept for this process alone: %s", spec.name, error)
        path = _own_folder() / name
        cache.write(path, source.encode())
    return path


def _holds(path: Path, source: str) -> bool:
    try:
        return path.read_text() == source
    except (OSError, UnicodeDecodeError):
        return False


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="nmcompile-kernels-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def load(spec: Spec) -> Any:
    """The kernel of a spec: a ``triton.JITFunction``, or interpreted under TRITON_INTERPRET=1.

    Raises:
        ImportError: Triton is not installed.
    """
    path = kernel_path(spec)
    module_spec = importlib.util.spec_from_file_location(f"nmcompile_kernels_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, spec.name)


@functools.cache
def with_warps(spec: Spec, warps: tuple[int, ...]) -> Any:
    """The kernel for Inductor, with the numbers of warps to choose from when it first runs."""
    import triton

    configurations = [triton.Config({}, num_warps=w) for w in warps]
    return triton.autotune(configurations, key=[])(load(spec))


def record_kernels(digest: str, specs: Sequence[Spec]) -> None:
    """Note which kernels a compiled graph runs; a graph has a forward and a backward."""
    if not specs:
        return
    path = _record(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(f"{kernel_path(spec)}\n" for spec in specs)
    except OSError as error:
        log.warning("a report will not list its kernels: %s", error)


def recorded_kernels(digest: str) -> tuple[Path, ...]:
    """The files of a compiled graph's kernels, each once, as far as they exist."""
    try:
        lines = _record(digest).read_text().splitlines()
    except OSError:
        return ()
    return tuple(p for line in dict.fromkeys(lines) if (p := Path(line)).exists())


def _record(digest: str) -> Path:
    return cache.folder() / f"{digest}.kernels"
