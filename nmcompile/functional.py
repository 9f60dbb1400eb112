"""N:M masks on tensors, eagerly: ``prune``, ``keep_mask`` and what they are made of.

The results carry no gradient: a mask is not differentiable, and in training the backend decides
where masks go. Write ``x * keep_mask(x)`` for the product rule with a fixed mask.
"""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import torch
from torch import Generator, Tensor

from nmcompile.compressed.layouts import Layout
from nmcompile.compressed.packing import Compressed, check_format
from nmcompile.errors import ArgumentError, FormatError, shown
from nmcompile.masks import reference
from nmcompile.masks.blocks import dense_copy
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.ops import schemas
from nmcompile.ops.call import Call
from nmcompile.policy.words import meant

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def prune(
    x: Tensor,
    format: str | NMFormat = "2:4",
    dim: int | tuple[int, ...] = -1,
    method: str | Method = Method.MSE,
    generator: Generator | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """``x`` with at most n non-zeros in every block of m elements along ``dim``; dense, same shape.

    Args:
        x: float32, float64, bfloat16 or float16, at least one dimension, any strides.
        format: n:m, for example ``"2:4"``.
        dim: the dimension that the blocks run along, or several, flattened in this order. The
            last block is padded with zeros when m does not divide the size. ``"transposable"``
            takes two, which its m x m tiles span (``(-2, -1)`` when ``dim`` is left out).
        method: ``"mse"``: the n largest magnitudes, ties to the lower index.
            ``"mvue"``: random, unbiased (the mean of the result is ``x``), of minimum variance.
            ``"approx-mvue"``: the approximation of Chmiel et al., arXiv 2203.10991; 2:4 only.
            ``"uniform"``: random, unbiased, every element kept with probability n/m.
            ``"transposable"``: n:m along both dimensions, largest sum of kept magnitudes; m = 2
            or 4.
        generator: of the random methods; None takes PyTorch's default (``torch.manual_seed``).
        offsets: ``[groups]`` int32 or int64, ascending, where groups along ``dim`` end (the tokens
            of experts, as of ``torch.nn.functional.grouped_mm``): blocks start anew with each, the
            last block of each is padded with zeros, and what lies behind the last offset is one
            more. The host waits for none of them.

    Returns:
        A new tensor with the strides of ``torch.empty_like(x)``, without a gradient. A block that
        holds inf or NaN stays non-finite: its n largest survive, or with ``"mvue"`` its first n
        as inf or NaN (as in a block whose magnitudes add up to 2^126 or more).

    Raises:
        ArgumentError (a TypeError), IndexError, FormatError, ValueError: for arguments that cannot
            be honoured.
    """
    return _masked(schemas.Prune, x, _check(x, format, dim, method), generator, offsets)


def keep_mask(
    x: Tensor,
    format: str | NMFormat = "2:4",
    dim: int | tuple[int, ...] = -1,
    method: str | Method = Method.MSE,
    generator: Generator | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """The boolean mask, True = kept, of ``prune`` with the same arguments and generator state.

    With ``"mvue"`` and the other random methods a kept element is also rescaled by ``prune``.
    """
    return _masked(schemas.KeepMask, x, _check(x, format, dim, method), generator, offsets)


def _masked(
    op: type[schemas.Mask],
    x: Tensor,
    chosen: tuple[NMFormat, list[int], Method],
    generator: Generator | None,
    offsets: Tensor | None,
) -> Tensor:
    form, dims, how = chosen
    with torch.no_grad():
        rest = (_seed(x, how, generator), 0, form.n, form.m)
        call: Call = op(x, *rest, dims, str(how))
        if offsets is not None:
            _check_offsets(offsets, dims, how)
            ragged = schemas.PruneRagged if op is schemas.Prune else schemas.KeepMaskRagged
            call = ragged(x, offsets, *rest, dims[0], str(how))
        result: Tensor = call.run()
    return result


def _check_offsets(offsets: Tensor, dims: list[int], method: Method) -> None:
    if method is Method.TRANSPOSABLE or len(dims) != 1:
        raise ValueError("offsets are of groups along one dimension: name that dimension alone")
    if not isinstance(offsets, Tensor):
        raise ArgumentError(f"offsets are a tensor: write torch.tensor({shown(offsets)})")
    if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(
            f"offsets must be one dimension of int32 or int64, where each group ends, not "
            f"{offsets.dim()} dimensions of {str(offsets.dtype).removeprefix('torch.')}"
        )


def inclusion_probability(
    x: Tensor,
    format: str | NMFormat = "2:4",
    dim: int | tuple[int, ...] = -1,
    method: str | Method = Method.MVUE,
) -> Tensor:
    """The probability that ``prune`` keeps each element; shape of ``x``, float32 (or float64).

    For ``"mvue"`` it is ``min(1, |x| / T)``, T the ``block_threshold``; for ``"mse"`` 0 or 1.
    Arguments as of ``prune``; not for ``"transposable"``.
    """
    form, dims, how = _check(x, format, dim, method)
    if how is Method.TRANSPOSABLE:
        raise ValueError("a transposable mask is not random: use keep_mask")
    if x.numel() == 0:
        return torch.empty_like(x, dtype=reference.compute_dtype(x.dtype))
    with torch.no_grad():
        blocks = reference.to_blocks(x, dims, form.m)
        return reference.from_blocks(
            reference.inclusion_probability(blocks, form.n, str(how)), x, dims
        )


def block_threshold(x: Tensor, format: str | NMFormat = "2:4", dim: int = -1) -> Tensor:
    """The threshold T of every block: ``"mvue"`` keeps magnitudes of at least T for certain.

    ``T = min over k < n of (sum of all but the k largest magnitudes) / (n - k)``: with
    ``p = min(1, |x| / T)`` the inclusion probabilities sum to n and the variance is smallest.

    Returns:
        The shape of ``x`` with ``dim`` replaced by the number of blocks; float32 (float64 for
        float64), rounded up to a value of ``x``'s dtype, and at least the smallest normal
        number (where fewer than n elements are non-zero).
    """
    form, dims, _ = _check(x, format, dim, Method.MVUE)
    if len(dims) != 1:
        raise ValueError("block_threshold takes one dimension")
    with torch.no_grad():
        rows = dense_copy(x).movedim(dims[0], -1)
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % form.m))
        blocks = rows.unflatten(-1, (rows.shape[-1] // form.m, form.m))
        return reference.block_threshold(blocks, form.n).movedim(-1, dims[0])


def compress(
    x: Tensor,
    dim: int = -1,
    layout: str | Layout = Layout.CUSPARSELT_SM90,
    method: str | Method = Method.MSE,
    generator: Generator | None = None,
    format: str | NMFormat = "2:4",
) -> Compressed:
    """``prune(x, format, dim, method, generator)`` in the compressed format of sparse tensor cores.

    Args:
        x: float32, float64, bfloat16 or float16, two dimensions ``[rows, columns]``, any strides.
            A size of zero gives a packed tensor without elements.
        dim: the dimension that the blocks run along. The compressed operand is ``x`` for -1 and
            its transpose for 0.
        layout: the order of the metadata (``compressed.layouts.Layout``): ``"cusparselt_sm90"``,
            ``"cusparselt_sm80"``, ``"cutlass_sm80"``, ``"row_major"``, or ``"cusparselt"``, which
            on a GPU is what the library itself packs, and cannot be decompressed there. Sparse
            tensor cores take the 16-bit dtypes.
        method: of ``prune``, except ``"transposable"``.
        generator: of the random methods; None takes PyTorch's default (``torch.manual_seed``).
        format: ``"2:4"``, or ``"1:2"``, which becomes two pairs of a 2:4 block.

    Returns:
        ``Compressed``, without a gradient: 9/16 of the bytes of a 16-bit ``x``, and padding.

    Raises:
        ArgumentError (a TypeError), IndexError, FormatError, ValueError: for arguments that cannot
            be honoured.
    """
    check_format(NMFormat.parse(format), str(method))
    form, dims, how = _check(x, format, dim, method)
    order = Layout.parse(layout)
    if x.dim() != 2 or len(dims) != 1:
        raise ValueError(
            f"compress takes a matrix and one dimension, not {x.dim()} dimensions and dim={dim}"
        )
    with torch.no_grad():
        seed = _seed(x, how, generator)
        call = schemas.Compress(x, seed, [0], dims, form.n, form.m, str(how), str(order))
        (packed,) = call.run()
    return Compressed(packed, (x.shape[0], x.shape[1]), dims[0], order, form)


def _check(
    x: Tensor, format: str | NMFormat, dim: int | tuple[int, ...], method: str | Method
) -> tuple[NMFormat, list[int], Method]:
    form = NMFormat.parse(format)
    _check_tensor(x)
    how = _method(method)
    tiles = how is Method.TRANSPOSABLE
    dims = _dims(x, (-2, -1) if tiles and dim == -1 and type(dim) is int else dim)
    if tiles and len(dims) != 2:
        raise ValueError(f"a transposable mask needs two dimensions, dim={dim} names {len(dims)}")
    if tiles and form.m not in (2, 4):
        raise FormatError(f"transposable masks exist for m = 2 and m = 4, not for {form}")
    if how is Method.APPROX_MVUE and (form.n, form.m) != (2, 4):
        raise FormatError(f'approx-mvue is defined for 2:4 alone, not for {form}: use "mvue"')
    return form, dims, how


def _check_tensor(x: object) -> None:
    if not isinstance(x, Tensor):
        raise ArgumentError(f"masks are of tensors: write torch.tensor(...) of {shown(x)}")
    if x.is_nested:
        raise ArgumentError("masks are of dense tensors: write x.to_padded_tensor(0.0)")
    if x.layout is not torch.strided:
        layout = str(x.layout).removeprefix("torch.")
        raise ArgumentError(f"masks are of dense tensors: write x.to_dense(), this one is {layout}")
    if x.dtype not in _DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise ArgumentError(f"cannot prune a tensor of dtype {x.dtype}: it must be one of {known}")
    if x.dim() == 0:
        raise IndexError("cannot prune a tensor without dimensions: blocks need one to run along")


def _method(method: object) -> Method:
    if isinstance(method, str):
        with suppress(ValueError):
            return Method(method)
    raise ValueError(
        f"{shown(method)} is not a pruning method: {meant('method', str(method), map(str, Method))}"
    )


def _dims(x: Tensor, dim: int | tuple[int, ...]) -> list[int]:
    """The dimensions that are meant, none of them negative."""
    try:
        numbers = [_index(d) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))]
    except TypeError as error:
        raise ArgumentError(
            f"dim = {shown(dim)}: write the number of a dimension, such as -1, or several of them, "
            "such as (0, 2)"
        ) from error
    for d in numbers:
        if not -x.dim() <= d < x.dim():
            raise IndexError(
                f"dimension {shown(d)} of a tensor with {x.dim()} dimensions does not exist"
            )
    dims = [d % x.dim() for d in numbers]
    if not dims or len(set(dims)) != len(dims):
        raise ValueError(f"dim={dim} must name one or more different dimensions")
    return dims


def _index(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _seed(x: Tensor, method: Method, generator: Generator | None) -> Tensor | None:
    if generator is not None and not isinstance(generator, Generator):
        raise ArgumentError(
            f"generator = {shown(generator)}: write torch.Generator().manual_seed(3), or leave it "
            "out to use torch.manual_seed"
        )
    if not method.random:
        if generator is not None:
            raise ValueError(f'method "{method}" draws no random numbers: leave out the generator')
        return None
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(f"the generator is on {generator.device}, the tensor on {x.device}")
    return torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=x.device)
