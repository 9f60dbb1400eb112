"""Generated kernels as files: written once, named by their content, run once a process.

What runs is the text that was printed in this process, never what lies in a file or beside it: the
files are for people, tracebacks and debuggers.
"""

from __future__ import annotations

import ast
import atexit
import functools
import hashlib
import linecache
import logging
import os
import re
import shutil
import tempfile
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nmcompile import cache
from nmcompile.codegen.printer import Spec, print_kernel

log = logging.getLogger(__name__)


def kernel_path(spec: Spec) -> Path:
    """The kernel's file, beside Inductor's cache; written if it is not there."""
    return _written(spec, print_kernel(spec))


def file_name(spec: Spec, source: str) -> str:
    """What the file of a kernel with this text is called."""
    return f"{spec.name}_{_digest(source.encode())}.py"


def sources(specs: Iterable[Spec]) -> dict[str, str]:
    """The text of each kernel once, by the name of its file; nothing is written."""
    printed = ((spec, print_kernel(spec)) for spec in dict.fromkeys(specs))
    return {file_name(spec, source): source for spec, source in printed}


def _written(spec: Spec, source: str) -> Path:
    name = file_name(spec, source)
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _holds(path: Path, source: str) -> bool:
    try:
        return path.read_bytes() == source.encode()
    except OSError:
        return False


@functools.cache
def _own_folder() -> Path:
    folder, owner = Path(tempfile.mkdtemp(prefix="nmcompile-kernels-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves it to its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@functools.cache
def load(spec: Spec) -> Any:
    """The kernel of a spec: a ``triton.JITFunction``, or interpreted under TRITON_INTERPRET=1.

    Raises:
        ImportError: Triton is not installed.
    """
    source = print_kernel(spec)
    path = str(_written(spec, source))
    module = types.ModuleType(f"nmcompile_kernels_{Path(path).stem}")
    module.__file__ = path
    # Triton asks for a kernel's source by its file. Without a time, the entry is never read again.
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    exec(compile(source, path, "exec"), vars(module))
    return getattr(module, spec.name)


@functools.cache
def for_inductor(
    spec: Spec, warps: tuple[int, ...], reads: tuple[str, ...], writes: tuple[str, ...]
) -> Any:
    """The kernel for Inductor, with the numbers of warps to choose from when it first runs.

    Inductor writes a kernel's text into its own code. Before that it has Triton translate it twice
    for each call, only to learn which tensors it reads and writes, and that takes most of the time
    in which a Llama layer compiles. What Triton is shown here does no more than that.

    Args:
        spec: the kernel.
        warps: numbers to choose from.
        reads, writes: its tensors by the names of their parameters.
    """
    import triton

    kernel = triton.jit(load(spec).fn)
    assert kernel.cache_key  # of the text as it is, before Triton is shown another
    kernel.parse = functools.partial(_accesses, kernel.src, reads, writes)
    configurations = [triton.Config({}, num_warps=w) for w in warps]
    return triton.autotune(configurations, key=[])(kernel)


def _accesses(source: str, reads: Iterable[str], writes: Iterable[str]) -> ast.Module:
    """The kernel with a body that loads from and stores to each tensor once."""
    tree = ast.parse(source)
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    lines = [*(f"tl.load({name})" for name in reads), *(f"tl.store({name}, 0)" for name in writes)]
    function.body = ast.parse("\n".join(lines)).body
    return tree


def record_kernels(digest: str, specs: Sequence[Spec]) -> None:
    """Note which kernels a compiled graph runs; a graph has a forward and a backward."""
    if not specs:
        return
    names = [kernel_path(spec).name for spec in specs]
    try:
        known = [path.name for path in recorded_kernels(digest)]
        lines = "".join(f"{name}\n" for name in dict.fromkeys([*known, *names]))
        cache.write(_record(digest), lines.encode())
    except OSError as error:
        log.warning("a report will not list its kernels: %s", error)


def recorded_kernels(digest: str) -> tuple[Path, ...]:
    """The files of a compiled graph's kernels, each once, as far as they are there and whole."""
    try:
        lines = _record(digest).read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return ()
    found = [_intact(line) for line in dict.fromkeys(lines)]
    return tuple(path for path in found if path is not None)


def _intact(name: str) -> Path | None:
    """The file of that name in our folder of kernels, if it holds what its name says."""
    match = re.fullmatch(r"[A-Za-z0-9_]{1,200}_([0-9a-f]{16})\.py", name)
    if match is None:
        return None
    path = cache.folder() / "kernels" / name
    try:
        return path if _digest(path.read_bytes()) == match[1] else None
    except OSError:
        return None


def _record(digest: str) -> Path:
    return cache.folder() / f"{digest}.kernels"
