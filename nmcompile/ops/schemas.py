"""The operators of ``torch.ops.nm``: schema, shapes of its results, and its call by name.

Those of kernels with a prologue are in ``fused_schemas``. All are pure functions of their
arguments, which are trusted: ``nmcompile.functional`` and the passes check them. Results never
alias an argument. What computes them is in the other files of this folder: ``masks``, ``ragged``,
``compress``, ``unpack``, ``product``, ``grouped``, ``seed``.

Arguments that several operators have:

    seed     int64, one element, on the operand's device, for the random methods; None for others
    stream   which random numbers of the seed: calls with different streams are independent
    n, m     the N:M format
    method   a word of ``masks.formats.Method``
    packed   a packed operand [rows, columns] (``compressed.layouts``)
    layout   a word of ``compressed.layouts.Layout``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from nmcompile.compressed import packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat
from nmcompile.ops.call import Call, check_names

LIBRARY = torch.library.Library("nm", "DEF")
Operator = TypeVar("Operator", bound=Call)


def operator(
    schema: str,
    fake: Callable[..., Any],
    strides: torch.Tag = torch.Tag.needs_fixed_stride_order,
) -> Callable[[type[Operator]], type[Operator]]:
    """Define an operator; ``fake`` makes its results without values, from the call.

    ``strides`` is what Inductor keeps of its arguments' strides.
    """

    def define(cls: type[Operator]) -> type[Operator]:
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, strides))
        name = schema.partition("(")[0]
        register = torch.library.register_fake(f"nm::{name}", lib=LIBRARY)
        register(lambda *args, **kwargs: fake(cls(*args, **kwargs)))
        cls.operator = getattr(torch.ops.nm, name).default
        check_names(cls)
        return cls

    return define


# -- masks ---------------------------------------------------------------------------------------

_MASK = "(Tensor x, Tensor? seed, int stream, int n, int m, int[] dims, str method) -> Tensor"


@dataclass(frozen=True)
class Mask(Call):
    """What ``Prune`` and ``KeepMask`` have in common.

    ``x`` is floating point with at least one dimension. ``dims`` are the reduction dimensions,
    flattened in this order; blocks of m run along them, the last one padded with zeros. For
    "transposable" they are the two dimensions of the m x m tiles.
    """

    x: Any
    seed: Any
    stream: int
    n: int
    m: int
    dims: Any
    method: str


@operator(f"prune{_MASK}", lambda call: torch.empty_like(call.x))
@dataclass(frozen=True)
class Prune(Mask):
    """``x`` with at most n non-zeros in every block, with the strides of ``empty_like(x)``."""


@operator(
    f"prune_in_any_layout{_MASK}",
    lambda call: torch.empty_like(call.x),
    strides=torch.Tag.flexible_layout,
)
@dataclass(frozen=True)
class PruneInAnyLayout(Mask):
    """``Prune`` without a seed, whose operand Inductor may give in any order of strides."""


@operator(f"keep_mask{_MASK}", lambda call: torch.empty_like(call.x, dtype=torch.bool))
@dataclass(frozen=True)
class KeepMask(Mask):
    """The mask of the same call of ``Prune``: bool, True is kept."""


@operator(
    "prune_each(Tensor x, Tensor? seed, int[] streams, int n, int m, int[][] dims, str method) "
    "-> Tensor[]",
    lambda call: [torch.empty_like(call.x) for _ in call.dims],
)
@dataclass(frozen=True)
class PruneEach(Call):
    """Several ``Prune`` of one tensor with one read of it: one for each entry of ``dims``."""

    x: Any
    seed: Any
    streams: Any
    n: int
    m: int
    dims: Any
    method: str

    @property
    def calls(self) -> list[Prune]:
        """The calls whose results these are."""
        kind = (self.n, self.m)
        return [
            Prune(self.x, self.seed, stream, *kind, dims, self.method)
            for stream, dims in zip(self.streams, self.dims, strict=True)
        ]


_RAGGED = (
    "(Tensor x, Tensor offsets, Tensor? seed, int stream, int n, int m, int dim, str method) "
    "-> Tensor"
)


@dataclass(frozen=True)
class Ragged(Call):
    """``Mask`` along ``dim``, with blocks that start anew with every group.

    ``offsets`` ``[groups]``, int32 or int64 and ascending, are where the groups of elements along
    ``dim`` end; the last block of each is padded with zeros. What lies behind the last offset is
    one more group. Blocks have the numbers that they have where groups are aligned
    (``masks.ragged``).
    """

    x: Any
    offsets: Any
    seed: Any
    stream: int
    n: int
    m: int
    dim: int
    method: str

    def of_rows(self, rows: Any) -> Mask:
        """The call for ``rows`` ``[outer, size, inner]`` whose groups start where blocks do."""
        cls = Prune if isinstance(self, PruneRagged) else KeepMask
        return cls(rows, self.seed, self.stream, self.n, self.m, [1], self.method)


@operator(f"prune_ragged{_RAGGED}", lambda call: torch.empty_like(call.x))
@dataclass(frozen=True)
class PruneRagged(Ragged):
    """``x`` with at most n non-zeros in every block, with the strides of ``empty_like(x)``."""


@operator(f"keep_mask_ragged{_RAGGED}", lambda call: torch.empty_like(call.x, dtype=torch.bool))
@dataclass(frozen=True)
class KeepMaskRagged(Ragged):
    """The mask of the same call of ``PruneRagged``: bool, True is kept."""


# -- packed operands -----------------------------------------------------------------------------


def _fake_compress(call: Compress) -> list[torch.Tensor]:
    x, layout = call.x, Layout.parse(call.layout)
    packing.check_format(NMFormat(call.n, call.m), call.method)
    shapes = [layout.packed_shape(x.shape[1 - d], x.shape[d], x.dtype) for d in call.dims]
    return [x.new_empty(shape) for shape in shapes]


@operator(
    "compress(Tensor x, Tensor? seed, int[] streams, int[] dims, int n, int m, str method, "
    "str layout) -> Tensor[]",
    _fake_compress,
)
@dataclass(frozen=True)
class Compress(Call):
    """Packed operands of ``x``, 2-D with any strides: one for each entry of ``dims``.

    For 1 the operand is x [R, C], for 0 it is x^T [C, R], each with a mask of its own (its stream)
    along the operand's columns: the one that ``Prune`` makes of x along that dimension.
    """

    x: Any
    seed: Any
    streams: Any
    dims: Any
    n: int
    m: int
    method: str
    layout: str


def _fake_pack(call: Pack) -> torch.Tensor:
    (rows, columns), dtype = call.x.shape, call.x.dtype
    packed: torch.Tensor = call.x.new_empty(
        Layout.parse(call.layout).packed_shape(rows, columns, dtype)
    )
    return packed


@operator("pack(Tensor x, str layout) -> Tensor", _fake_pack)
@dataclass(frozen=True)
class Pack(Call):
    """The packed operand of ``x`` ``[R, C]``, any strides, that is pruned already.

    At most two elements in each block of 4 along its columns are not zero. What the library of an
    opaque layout does itself.
    """

    x: Any
    layout: str


@operator(
    "decompress(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor",
    lambda call: call.packed.new_empty(call.rows, call.columns),
)
@dataclass(frozen=True)
class Decompress(Call):
    """The dense operand ``[rows, columns]``, contiguous."""

    packed: Any
    rows: Any
    columns: Any
    layout: str


@operator(
    "unpack_mask(Tensor packed, SymInt rows, SymInt columns, str layout) -> Tensor",
    lambda call: call.packed.new_empty(call.rows, call.columns, dtype=torch.bool),
)
@dataclass(frozen=True)
class UnpackMask(Call):
    """The keep mask of a packed operand, bool ``[rows, columns]``.

    Where a random method kept fewer than two elements of a block, the free indices that fill it are
    True as well (``compressed.packing``).
    """

    packed: Any
    rows: Any
    columns: Any
    layout: str


@operator(
    "compress_like(Tensor x, Tensor packed, str layout) -> Tensor",
    lambda call: call.packed.new_empty(call.packed.shape),
)
@dataclass(frozen=True)
class CompressLike(Call):
    """``x`` ``[rows, columns]`` at the places that ``packed`` keeps, packed in the same layout.

    What a backward needs of a tensor whose gradient is masked so.
    """

    x: Any
    packed: Any
    layout: str


# -- products and seeds --------------------------------------------------------------------------


def _fake_mm(call: Mm) -> torch.Tensor:
    shape = (call.rows, call.dense.shape[1])
    result: torch.Tensor = call.dense.new_empty(shape[::-1] if call.transpose_result else shape)
    return result


@operator(
    "mm(Tensor packed, Tensor dense, SymInt rows, str layout, Tensor? bias=None, "
    "bool transpose_result=False, bool column_major=False) -> Tensor",
    _fake_mm,
)
@dataclass(frozen=True)
class Mm(Call):
    """The packed operand ``[rows, K]`` times ``dense`` ``[K, N]``: ``[rows, N]``, contiguous.

    With ``transpose_result`` it is ``[N, rows]``. ``bias`` ``[rows]`` is added to every column of
    the product. The blocks' format is not repeated here, because a 1:2 operand is a 2:4 operand
    too. ``column_major`` says that the operand lies column by column in the graph (it is x^T of a
    row-major x); it changes a rounding on the CPU alone (``ops.product``).
    """

    packed: Any
    dense: Any
    rows: Any
    layout: str
    bias: Any = None
    transpose_result: bool = False
    column_major: bool = False


def _fake_library_mm(call: LibraryMm) -> torch.Tensor:
    rows: Any = call.packed.shape[0]
    return _fake_mm(Mm(call.packed, call.dense, rows, "", call.bias, call.transpose_result))


@operator(
    "library_mm(Tensor packed, Tensor dense, Tensor? bias=None, bool transpose_result=False, "
    "int algorithm=0) -> Tensor",
    _fake_library_mm,
    strides=torch.Tag.needs_exact_strides,
)
@dataclass(frozen=True)
class LibraryMm(Call):
    """``Mm`` of operands that cuSPARSELt takes as they are: what Inductor calls it for.

    Nothing is padded, ``packed`` is contiguous, ``dense`` or its transpose is, and all begin at
    multiples of 16 bytes. The library checks none of it. ``algorithm`` is one of its own.
    """

    packed: Any
    dense: Any
    bias: Any = None
    transpose_result: bool = False
    algorithm: int = 0


@operator(
    "grouped_gradient(Tensor input, Tensor weight, Tensor offs, Tensor grad_output, "
    "bool of_weight) -> Tensor",
    lambda call: torch.empty_like(call.weight if call.of_weight else call.input),
)
@dataclass(frozen=True)
class GroupedGradient(Call):
    """One result of ``transformers::grouped_mm_fallback_backward``, which computes both.

    The gradient of ``input`` ``[S, I]``, or of ``weight`` ``[E, I, O]`` where ``of_weight``, from
    ``grad_output`` ``[S, O]``; ``offs`` ``[E]`` is where the rows of each group end.
    """

    input: Any
    weight: Any
    offs: Any
    grad_output: Any
    of_weight: bool


@operator("rank_seed(Tensor seed, int? rank) -> Tensor", lambda call: torch.empty_like(call.seed))
@dataclass(frozen=True)
class RankSeed(Call):
    """One seed, made different for every rank; rank 0 keeps it.

    ``rank`` None is this process's own, read when the graph runs: the graphs of all ranks are
    equal, and data-parallel processes that are seeded alike still draw different masks.
    """

    seed: Any
    rank: int | None
