"""cuSPARSELt's product by plans that are kept: ``NMCOMPILE_KEEP_PLANS=1``.

PyTorch makes the library's descriptors and its plan anew in every call, which takes the host 468 to
812 us (H100, cuSPARSELt 0.8.0). Here each thread makes them once for each product, and what is left
of a call is ``cusparseLtMatmul``. No GPU has run this yet, so it is done where it is asked for, and
where the first products of a device are, bit for bit, those of PyTorch's own call.

Names and numbers are those of ``cusparseLt.h``, alike from 0.7.1 to 0.10.0.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
import warnings
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmcompile import _cuda
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning

KEEP = "NMCOMPILE_KEEP_PLANS"
#: Seconds of the host for a call of a kept plan through an operator in Python. Assumed.
CALL = 30e-6

_VERSIONS = range(701, 1001)  # whose header is as written here
_MOST_PLANS = 1024  # of a thread
_STRUCTURE, _ALIGNMENT = 1024, 16  # bytes of an opaque one: 512 from 0.8 on, 1,024 before
_TYPES = {torch.float16: 2, torch.bfloat16: 14}  # cudaDataType
_COLUMN, _ROW = 1, 2  # cusparseOrder_t
_AS_IS, _TRANSPOSED = 0, 1  # cusparseOperation_t
_COMPUTE_32F = 2
_SPARSITY_50_PERCENT = 0
_BIAS_POINTER = 8  # of cusparseLtMatmulDescAttribute_t
_ALG_DEFAULT, _ALG_CONFIG_ID = 0, 0

_P, _I, _L, _U, _S = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_uint32,
    ctypes.c_size_t,
)
#: Each returns 0 where it succeeds.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "Init": (_P,),
    "DenseDescriptorInit": (_P, _P, _L, _L, _L, _U, _I, _I),
    "StructuredDescriptorInit": (_P, _P, _L, _L, _L, _U, _I, _I, _I),
    "MatDescriptorDestroy": (_P,),
    "MatmulDescriptorInit": (_P, _P, _I, _I, _P, _P, _P, _P, _I),
    "MatmulDescSetAttribute": (_P, _P, _I, _P, _S),
    "MatmulAlgSelectionInit": (_P, _P, _P, _I),
    "MatmulAlgSetAttribute": (_P, _P, _I, _P, _S),
    "MatmulPlanInit": (_P, _P, _P, _P),
    "MatmulPlanDestroy": (_P,),
    "MatmulGetWorkspace": (_P, _P, _P),
    "Matmul": (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, ctypes.c_int32),
}


@functools.cache
def asked() -> bool:
    """Whether plans are to be kept: ``NMCOMPILE_KEEP_PLANS`` as it was when first looked at."""
    return os.environ.get(KEEP, "") not in ("", "0")


def mm(packed: Tensor, *others: Any) -> Tensor:
    """``kept_mm`` of the same arguments where that is asked for and works, else PyTorch's call."""
    call = kept_mm if asked() and _works(packed.dtype, packed.device) else _cuda.cusparselt_mm
    return call(packed, *others)


def kept_mm(
    packed: Tensor,
    dense: Tensor,
    bias: Tensor | None = None,
    transpose_result: bool = False,
    algorithm: int = 0,
) -> Tensor:
    """The library's product by a plan of this thread, made where it has none for such a product.

    Args:
        packed: ``[rows, 9/16 k]``, contiguous, as the library packs an operand ``[rows, k]``.
        dense: ``[k, columns]``, contiguous or the transpose of what is.
        bias: ``[rows]``, one number for each row of the packed operand.
        transpose_result: whether the result is ``[columns, rows]``.
        algorithm: the library's number of it.

    Raises:
        RuntimeError: the library refuses, or there is none that is known.
    """
    k, columns = dense.shape
    product = _Product(
        packed.shape[0],
        columns,
        k,
        packed.dtype,
        not dense.is_contiguous(),
        transpose_result,
        bias is not None,
        algorithm,
    )
    with _current(packed.device):
        return _of_thread.plan(packed.device, product)(packed, dense, bias)


class _Product(NamedTuple):
    """What a plan is for."""

    rows: int
    columns: int
    k: int
    dtype: torch.dtype
    by_columns: bool
    transpose_result: bool
    biased: bool
    algorithm: int


class _Plan:
    """One of the library's plans, with what it refers to; it is of the thread that made it."""

    def __init__(self, device: torch.device, product: _Product) -> None:
        self._product, self._handle = product, _of_thread.handle(device)
        p, call = product, self._call
        a, b, d, self._multiply, algorithm, self._plan = (_structure() for _ in range(6))
        order = _COLUMN if p.transpose_result else _ROW
        size, kind = (p.rows, p.k, p.k), (_ALIGNMENT, _TYPES[p.dtype])
        call("StructuredDescriptorInit", a, *size, *kind, _ROW, _SPARSITY_50_PERCENT)
        size = (p.columns, p.k, p.k) if p.by_columns else (p.k, p.columns, p.columns)
        call("DenseDescriptorInit", b, *size, *kind, _ROW)
        size = p.rows, p.columns, p.rows if p.transpose_result else p.columns
        call("DenseDescriptorInit", d, *size, *kind, order)
        how = _AS_IS, _TRANSPOSED if p.by_columns else _AS_IS
        call("MatmulDescriptorInit", self._multiply, *how, a, b, d, d, _COMPUTE_32F)
        if p.biased:  # a plan that was made without one would never read any
            self._add(torch.empty(p.rows, dtype=p.dtype, device=device).data_ptr())
        call("MatmulAlgSelectionInit", algorithm, self._multiply, _ALG_DEFAULT)
        number = ctypes.c_int(p.algorithm)
        given = ctypes.byref(number), ctypes.sizeof(number)
        call("MatmulAlgSetAttribute", algorithm, _ALG_CONFIG_ID, *given)
        call("MatmulPlanInit", self._plan, self._multiply, algorithm)
        # From the plan the library refers to all of them.
        parts = a, b, d, self._multiply, algorithm
        weakref.finalize(self, _destroy, library(), self._plan, parts).atexit = False
        room = ctypes.c_size_t()
        call("MatmulGetWorkspace", self._plan, ctypes.byref(room))
        self._workspace = room.value
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)

    def _call(self, name: str, *given: Any) -> None:
        library()(name, self._handle, *given)

    def _add(self, bias: int) -> None:
        """Let the product read its bias there, from the next call on."""
        pointer = ctypes.c_void_p(bias)
        given = ctypes.byref(pointer), ctypes.sizeof(pointer)
        self._call("MatmulDescSetAttribute", self._multiply, _BIAS_POINTER, *given)

    def __call__(self, packed: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
        p = self._product
        if bias is not None:
            self._add(bias.data_ptr())
        shape = (p.columns, p.rows) if p.transpose_result else (p.rows, p.columns)
        result = packed.new_empty(shape)
        room = packed.new_empty(self._workspace, dtype=torch.uint8)
        stream = ctypes.c_void_p(_stream(packed.device))
        self._call(
            "Matmul",
            self._plan,
            ctypes.byref(self._one),
            packed.data_ptr(),
            dense.data_ptr(),
            ctypes.byref(self._zero),
            result.data_ptr(),
            result.data_ptr(),
            room.data_ptr(),
            ctypes.byref(stream),
            1,
        )
        return result


def _handle(device: torch.device) -> Any:
    """Of the device, which is the current one."""
    handle = _structure()
    library()("Init", handle)
    return handle


class _OfThread(threading.local):
    """As PyTorch has it: a handle and plans for each thread, since a call changes them."""

    def __init__(self) -> None:
        self.plan = functools.lru_cache(_MOST_PLANS)(_Plan)
        self.handle = functools.cache(_handle)


_of_thread = _OfThread()


def _destroy(call: Library, plan: Any, parts: tuple[Any, ...]) -> None:
    call("MatmulPlanDestroy", plan)
    for descriptor in parts[:3]:
        call("MatDescriptorDestroy", descriptor)


def _structure() -> Any:
    """Zeroed room for one of the library's opaque structures, aligned."""
    room = (ctypes.c_char * (_STRUCTURE + _ALIGNMENT))()
    start = -ctypes.addressof(room) % _ALIGNMENT
    return (ctypes.c_char * _STRUCTURE).from_buffer(room, start)


class Library:
    """The library's functions by name, without the prefix; each raises where it fails."""

    def __init__(self, symbols: Any) -> None:
        self._functions = {}
        for name, arguments in FUNCTIONS.items():
            function = getattr(symbols, f"cusparseLt{name}")
            function.restype, function.argtypes = ctypes.c_int, arguments
            self._functions[name] = function

    def __call__(self, name: str, *given: Any) -> None:
        status = self._functions[name](*given)
        if status:
            raise RuntimeError(f"cusparseLt{name} returned status {status}")


@functools.cache
def library() -> Library:
    """What PyTorch has loaded.

    Raises:
        RuntimeError: nothing, or a version that is not known here.
    """
    here = torch.backends.cusparselt
    version = here.version() if here.is_available() else None
    if version not in _VERSIONS:
        known = f"{_VERSIONS.start} to {_VERSIONS.stop - 1}"
        raise RuntimeError(f"cuSPARSELt {version or 'is not there'}: known are {known}")
    everything = ctypes.CDLL(None)
    if not hasattr(everything, "cusparseLtInit"):  # loaded, but by another library alone
        everything = ctypes.CDLL("libcusparseLt.so.0", os.RTLD_NOW | os.RTLD_NOLOAD)
    return Library(everything)


_found: dict[tuple[torch.dtype, torch.device], bool] = {}


def _works(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products are those of PyTorch's call; tried once, which waits for the device."""
    if (dtype, device) not in _found:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        _found[dtype, device] = _agrees(dtype, device)
    return _found[dtype, device]


def _agrees(dtype: torch.dtype, device: torch.device) -> bool:
    rows, columns, k = 128, 64, 256
    draw = functools.partial(
        torch.randn, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(0)
    )
    packed = packing.random_packed(rows, k, Layout.CUSPARSELT_SM90, draw)
    try:
        for by_columns, transposed, biased in itertools.product((False, True), repeat=3):
            dense = draw(columns, k).t() if by_columns else draw(k, columns)
            for _ in range(2):  # the second time the plan is there, and the bias another
                given = packed, dense, draw(rows) if biased else None, transposed
                ours, theirs = kept_mm(*given).cpu(), _cuda.cusparselt_mm(*given).cpu()
                if not torch.equal(ours, theirs):
                    raise RuntimeError(
                        "its products by a kept plan are not those of PyTorch's call"
                    )
    except (RuntimeError, OSError, AttributeError) as error:
        warnings.warn(
            f"{KEEP} is set, but plans of cuSPARSELt are made anew in every call on {device}: "
            f"{error}",
            NMWarning,
            stacklevel=2,
        )
        return False
    return True


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> int:
    """The address of PyTorch's current stream."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
