"""Mask kernels for the CPU: one C++ source, specialised, compiled once, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from subprocess import SubprocessError

import torch
from torch import Tensor

from nmcompile import _torch
from nmcompile.codegen.cpu import library
from nmcompile.errors import NMWarning
from nmcompile.masks.blocks import BlockLayout
from nmcompile.masks.formats import Method, NMFormat

_TEMPLATES = [Path(__file__).with_name(name) for name in ("vectors.h", "prune.cpp")]
_STORAGE = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
# Below this many elements a thread costs more than it saves.
_ELEMENTS_PER_THREAD = 16384


@dataclass(frozen=True, slots=True)
class KernelKind:
    """What a compiled mask kernel is specialised for; it serves every shape and layout.

    Attributes:
        format: n and m.
        method: how survivors are chosen.
        dtype: float32, float64, bfloat16 or float16.
        mask: whether it writes the keep mask instead of the pruned values.
    """

    format: NMFormat
    method: Method
    dtype: torch.dtype
    mask: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One result of a kernel: its dense tensor, how blocks lie in it, and its random numbers."""

    out: Tensor
    layout: BlockLayout
    stream: int


class Kernel:
    """A loaded kernel."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._function = loaded.nm_kernel
        self._function.restype = None
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._function.argtypes = [pointer, pointer, number, pointer, number]

    def __call__(self, x: Tensor, results: Sequence[Result], seed: Tensor | None) -> None:
        """Prune the memory of ``x``, read once, into every result.

        The memory of ``x`` and of a result is seen as ``[outer, size, inner]`` of its layout.
        """
        threads = min(torch.get_num_threads(), 1 + x.numel() // _ELEMENTS_PER_THREAD)
        numbers: list[int] = []
        for r in results:
            layout = r.layout
            numbers += (r.out.data_ptr(), layout.outer, layout.size, layout.inner, r.stream)
        array = (ctypes.c_int64 * len(numbers))(*numbers)
        key = None if seed is None else seed.data_ptr()
        self._function(x.data_ptr(), array, len(results), key, threads)


def source(kind: KernelKind) -> str:
    """The C++ source of a kernel: the templates under a few lines that specialise it."""
    lines = [
        f"// {kind.format} {kind.method} {kind.dtype}: {'keep mask' if kind.mask else 'prune'}",
        f"#define NM_N {kind.format.n}",
        f"#define NM_M {kind.format.m}",
        f"#define NM_METHOD METHOD_{kind.method.name}",
        f"#define NM_STORAGE STORAGE_{_STORAGE[kind.dtype]}",
        f"#define NM_MASK {int(kind.mask)}",
    ]
    if kind.method is Method.TRANSPOSABLE:
        lines += _patterns(kind.format)
    return "\n".join(["\n".join(lines) + "\n", *(path.read_text() for path in _TEMPLATES)])


def _patterns(form: NMFormat) -> list[str]:
    """Tables of the rows with n of m kept, and of the m x m patterns.

    A pattern is m indices of rows, then the bits of its kept elements.
    """
    rows = list(combinations(range(form.m), form.n))
    square = [
        pick
        for pick in product(range(len(rows)), repeat=form.m)
        if all(sum(c in rows[r] for r in pick) == form.n for c in range(form.m))
    ]
    bits = [sum(1 << c for c in row) for row in rows]
    table = [(*pick, sum(bits[r] << at * form.m for at, r in enumerate(pick))) for pick in square]
    return [
        f"static const int ROWS[] = {{{', '.join(map(str, bits))}}};",
        "static const unsigned short PATTERNS[][NM_M + 1] = {",
        *("  {" + ", ".join(map(str, row)) + "}," for row in table),
        "};",
    ]


def _load(kind: KernelKind) -> Kernel:
    return Kernel(library.load(source(kind), "nm_kernel"))


def _compile(kind: KernelKind) -> Kernel | None:
    if sys.platform == "win32":
        _without_compiler("Windows is not supported")
        return None
    try:
        return _load(kind)
    except (RuntimeError, OSError, SubprocessError) as error:
        _without_compiler((str(error).strip() or type(error).__name__).splitlines()[0])
        return None


@functools.cache
def _without_compiler(reason: str) -> None:
    warnings.warn(
        f"a mask kernel could not be built ({reason}): the masks are computed by plain PyTorch, "
        "which is many times slower; is there a C++ compiler (g++, clang++, or CXX), and can "
        "Inductor's cache (TORCHINDUCTOR_CACHE_DIR) be written?",
        NMWarning,
        stacklevel=2,
    )


_kernels: dict[KernelKind, Future[Kernel | None]] = {}
_lock = threading.Lock()
_builder = ThreadPoolExecutor(1, thread_name_prefix="nmcompile-build")


def _after_fork() -> None:
    """In a forked child: its parent's thread is not there, nor is whoever held the lock."""
    global _kernels, _lock, _builder
    _lock = threading.Lock()
    _builder = ThreadPoolExecutor(1, thread_name_prefix="nmcompile-build")
    _kernels = {kind: future for kind, future in dict(_kernels).items() if future.done()}


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _future(
    kind: KernelKind, start: Callable[[Callable[[], None]], object]
) -> Future[Kernel | None]:
    with _lock:
        future = _kernels.get(kind)
        if future is not None:
            return future
        future = _kernels[kind] = Future()

    def work() -> None:
        try:
            future.set_result(_compile(kind))
        except BaseException as error:
            with _lock:
                _kernels.pop(kind, None)  # an interrupted build is tried again
            future.set_exception(error)

    start(work)
    return future


def kernel(kind: KernelKind) -> Kernel | None:
    """The kernel of this kind, compiled at the first call (about a second; then cached on disk).

    Returns None, after one ``NMWarning``, when no C++ compiler works, when Inductor's cache cannot
    be written, or on Windows.
    """
    return _future(kind, lambda work: work()).result()


def warm_up(kind: KernelKind) -> None:
    """Compile the kernel in the background; a later ``kernel(kind)`` waits for it."""
    # Inductor asks the compiler what the processor can do, once, but without a lock: were it asked
    # by two threads, the compiler would run twice.
    with suppress(RuntimeError, OSError, SubprocessError):  # who needs the kernel says so
        _torch.ask_vector_instructions()
    _future(kind, _builder.submit)
