"""cuSPARSELt's product by plans that are kept, and not made anew in every call as PyTorch has it.

Measured on an H100 (cuSPARSELt 0.8.0): a call of PyTorch takes the host 468 to 586 us, one by a
plan that is kept 32 where the product of dense matrices takes 29.
Each thread makes the library's descriptors and its plan once for each product, and what is left of
a call is ``cusparseLtMatmul``. The first products of a device are compared with those of PyTorch's
own call, bit for bit. ``NMCOMPILE_KEEP_PLANS=0`` leaves all of it to PyTorch.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmcompile import _cuda
from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning

KEEP = "NMCOMPILE_KEEP_PLANS"
#: Seconds of the host for a call of a kept plan, measured on the host of an H100.
CALL = 32e-6

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
    """Whether plans are to be kept: as ``NMCOMPILE_KEEP_PLANS`` was when first looked at.

    Not where there is a library of a version that is not known here.
    """
    version = _version()
    return os.environ.get(KEEP, "1") not in ("", "0") and version in (None, *_VERSIONS)


def _version() -> int | None:
    here = torch.backends.cusparselt
    return here.version() if here.is_available() else None


def mm(
    packed: Tensor,
    dense: Tensor,
    bias: Tensor | None = None,
    transpose_result: bool = False,
    algorithm: int = 0,
) -> Tensor:
    """``kept_mm`` of the same arguments where that may be and is right, else PyTorch's call."""
    if asked() and _works(packed):
        return kept_mm(packed, dense, bias, transpose_result, algorithm)
    return _cuda.cusparselt_mm(packed, dense, bias, transpose_result, algorithm)


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
    product = (
        packed.get_device(),
        packed.shape[0],
        columns,
        k,
        packed.dtype,
        not dense.is_contiguous(),
        transpose_result,
        bias is not None,
        algorithm,
    )
    plan = _of_thread.plans.get(product)
    if plan is None:
        plan = _of_thread.made(_Product(*product))
    return plan(packed, dense, bias)


class _Product(NamedTuple):
    """What a plan is for; ``device`` is the number of a GPU, negative on the CPU."""

    device: int
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

    def __init__(self, product: _Product) -> None:
        p, call, self._parts = product, self._call, [_structure() for _ in range(6)]
        self._handle, self._device = _of_thread.handle(p.device), p.device
        a, b, d, self._multiply, algorithm, self._plan = self._parts
        order = _COLUMN if p.transpose_result else _ROW
        size, kind = (p.rows, p.k, p.k), (_ALIGNMENT, _TYPES[p.dtype])
        call("StructuredDescriptorInit", a, *size, *kind, _ROW, _SPARSITY_50_PERCENT)
        size = (p.columns, p.k, p.k) if p.by_columns else (p.k, p.columns, p.columns)
        call("DenseDescriptorInit", b, *size, *kind, _ROW)
        size = p.rows, p.columns, p.rows if p.transpose_result else p.columns
        call("DenseDescriptorInit", d, *size, *kind, order)
        how = _AS_IS, _TRANSPOSED if p.by_columns else _AS_IS
        call("MatmulDescriptorInit", self._multiply, *how, a, b, d, d, _COMPUTE_32F)
        self._empty = _cuda.empty_on(p.device)
        if p.biased:  # a plan that was made without one would never read any
            self._add(self._empty((p.rows,), (1,), p.dtype))
        call("MatmulAlgSelectionInit", algorithm, self._multiply, _ALG_DEFAULT)
        number = ctypes.c_int(p.algorithm)
        given = ctypes.byref(number), ctypes.sizeof(number)
        call("MatmulAlgSetAttribute", algorithm, _ALG_CONFIG_ID, *given)
        call("MatmulPlanInit", self._plan, self._multiply, algorithm)
        # From the plan the library refers to all of them.
        weakref.finalize(self, _destroy, library(), self._parts).atexit = False
        room = ctypes.c_size_t()
        call("MatmulGetWorkspace", self._plan, ctypes.byref(room))
        shape = (p.columns, p.rows) if p.transpose_result else (p.rows, p.columns)
        self._result = shape, (shape[1], 1), p.dtype
        self._workspace = (room.value,), (1,), torch.uint8
        # What a call needs, found once: a step may make hundreds.
        self._matmul, self._stream_of = library().matmul, _cuda.stream_on(p.device)
        self._now = torch.cuda.current_device if p.device >= 0 else (lambda: p.device)
        self._one, self._zero, self._stream = ctypes.c_float(1), ctypes.c_float(0), _P()
        self._fixed = tuple(map(ctypes.addressof, (self._handle, self._plan, self._one)))
        self._places = tuple(map(ctypes.addressof, (self._zero, self._stream)))

    def _call(self, name: str, *given: Any) -> None:
        library()(name, self._handle, *given)

    def _add(self, bias: Tensor) -> None:
        """Let the product read its bias there, from the next call on."""
        pointer = ctypes.c_void_p(bias.data_ptr())
        given = ctypes.byref(pointer), ctypes.sizeof(pointer)
        self._call("MatmulDescSetAttribute", self._multiply, _BIAS_POINTER, *given)

    def __call__(self, packed: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
        if self._now() != self._device:
            with torch.cuda.device(self._device):
                return self(packed, dense, bias)
        if bias is not None:
            self._add(bias)
        result, room = self._empty(*self._result), self._empty(*self._workspace)
        self._stream.value = self._stream_of(self._device)
        (zero, streams), out = self._places, result.data_ptr()
        status = self._matmul(
            *self._fixed,
            packed.data_ptr(),
            dense.data_ptr(),
            zero,
            out,
            out,
            room.data_ptr(),
            streams,
            1,
        )
        if status:
            raise RuntimeError(f"cusparseLtMatmul returned status {status}")
        return result


def _handle(device: int) -> Any:
    """Of the device."""
    handle = _structure()
    with torch.cuda.device(device):  # nothing where it is negative
        library()("Init", handle)
    return handle


class _OfThread(threading.local):
    """As PyTorch has it: a handle and plans for each thread, since a call changes them."""

    def __init__(self) -> None:
        self.plans: dict[tuple[Any, ...], _Plan] = {}
        self.handle = functools.cache(_handle)

    def made(self, product: _Product) -> _Plan:
        """A new plan, in the place of the oldest where there are many."""
        if len(self.plans) >= _MOST_PLANS:
            del self.plans[next(iter(self.plans))]
        with torch.cuda.device(product.device):
            return self.plans.setdefault(product, _Plan(product))


_of_thread = _OfThread()


def _destroy(call: Library, parts: list[Any]) -> None:
    *descriptors, _, _, plan = parts
    call("MatmulPlanDestroy", plan)
    for descriptor in descriptors:
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
        self.matmul = self._functions["Matmul"]

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
    version = _version()
    if version not in _VERSIONS:
        known = f"{_VERSIONS.start} to {_VERSIONS.stop - 1}"
        raise RuntimeError(f"cuSPARSELt {version or 'is not there'}: known are {known}")
    everything = ctypes.CDLL(None)
    if not hasattr(everything, "cusparseLtInit"):  # loaded, but by another library alone
        everything = ctypes.CDLL("libcusparseLt.so.0", os.RTLD_NOW | os.RTLD_NOLOAD)
    return Library(everything)


_found: dict[tuple[torch.dtype, torch.device], bool] = {}


def _works(packed: Tensor) -> bool:
    """Whether products are those of PyTorch's call; tried once, which waits for the device."""
    place = packed.dtype, packed.device
    found = _found.get(place)
    if found is None:
        if packed.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        found = _found[place] = _version() is not None and _agrees(*place)
    return found


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
            f"plans of cuSPARSELt are made anew in every call on {device}, which takes the host "
            f"about a millisecond; {KEEP}=0 says nothing of it: {error}",
            NMWarning,
            stacklevel=2,
        )
        return False
    return True
