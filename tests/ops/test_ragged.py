"""``nm::prune_ragged`` and ``nm::keep_mask_ragged`` against a loop over the groups."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nmcompile.functional import inclusion_probability, keep_mask, prune
from nmcompile.masks.formats import Method
from nmcompile.ops.schemas import KeepMaskRagged, PruneRagged

SEED = torch.tensor([0x123456789ABCDEF])
#: Ends of groups of 67 rows: odd sizes, empty ones, a row alone, nothing behind or something.
SPLITS = [[67], [13, 13, 34, 64, 67], [0, 0, 67, 67], [1, 2, 3, 60], [0], [10, 50]]
SIZE, WIDTH = 67, 24


def called(cls, x: Tensor, ends: list[int], dim: int, method: str, stream: int = 0) -> Tensor:
    seed = SEED if Method(method).random else None
    return cls(x, torch.tensor(ends), seed, stream, 2, 4, dim, method).run()


def groups(x: Tensor, ends: list[int], dim: int) -> list[Tensor]:
    """The groups and what lies behind them, without those that are empty."""
    bounds = [0, *ends, x.shape[dim]]
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    return [part for part in x.split(sizes, dim) if part.numel()]


def lying(how: str) -> tuple[Tensor, int]:
    """An operand whose groups lie along the dimension."""
    rows = torch.randn(SIZE, WIDTH)
    cases = {
        "rows": (rows, 0),
        "transposed": (rows.t(), 1),
        "columns": (torch.randn(WIDTH, SIZE), 1),
        "sliced": (torch.randn(SIZE + 2, WIDTH + 5)[1:-1, 2:-3], 0),
        "expanded": (torch.randn(1, WIDTH).expand(SIZE, WIDTH), 0),
        "batched": (torch.randn(3, SIZE, 5), 1),
    }
    return cases[how]


@pytest.mark.parametrize("ends", SPLITS)
@pytest.mark.parametrize("how", ["rows", "transposed", "columns", "sliced", "expanded", "batched"])
def test_each_group_is_pruned_by_itself(how: str, ends: list[int]) -> None:
    x, dim = lying(how)
    for cls, alone in ((PruneRagged, prune), (KeepMaskRagged, keep_mask)):
        found = called(cls, x, ends, dim, "mse")
        expected = [alone(part, "2:4", dim) for part in groups(x, ends, dim)]
        assert torch.equal(found, torch.cat(expected, dim))
        assert found.stride() == torch.empty_like(x).stride()
        assert found.dtype == (x.dtype if cls is PruneRagged else torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ends", SPLITS)
def test_no_block_of_a_group_keeps_more_than_n(ends: list[int], dtype: torch.dtype) -> None:
    x = torch.randn(SIZE, WIDTH, dtype=dtype)
    pruned = called(PruneRagged, x, ends, 0, "mvue")
    for part in groups(pruned, ends, 0):
        padded = torch.nn.functional.pad(part, (0, 0, 0, -len(part) % 4))
        assert int(padded.unflatten(0, (-1, 4)).ne(0).sum(1).max()) <= 2


@pytest.mark.parametrize("ends", [[13, 13, 34, 64], [1, 2, 3, 60]])
def test_mvue_is_unbiased_in_every_group(ends: list[int]) -> None:
    """The mean of many draws is x within 5 sigma, of the variance that the probabilities give."""
    x, count = torch.randn(SIZE, WIDTH, dtype=torch.float64), 4000
    total = sum(called(PruneRagged, x, ends, 0, "mvue", stream) for stream in range(count))
    p = torch.cat([inclusion_probability(g, "2:4", 0) for g in groups(x, ends, 0)])
    sigma = (x.square() * (1 / p - 1) / count).sqrt()
    assert ((total / count - x).abs() <= 5 * sigma + 1e-9).all()


def test_blocks_have_numbers_of_their_own() -> None:
    """Equal groups get different masks, and so do other streams; the same call gets the same."""
    x = torch.randn(8, 64).repeat(6, 1)
    ends = list(range(8, 49, 8))
    first = called(PruneRagged, x, ends, 0, "mvue")
    assert torch.equal(first, called(PruneRagged, x, ends, 0, "mvue"))
    parts = groups(first, ends, 0)
    assert len({tuple(p.flatten().tolist()) for p in parts}) == len(parts)
    assert not torch.equal(first, called(PruneRagged, x, ends, 0, "mvue", 1))


def test_what_lies_behind_the_last_offset_changes_no_group() -> None:
    x = torch.randn(SIZE, WIDTH)
    other = x.clone()
    other[50:] = torch.nan
    for method in ("mse", "mvue"):
        one, two = (called(PruneRagged, t, [10, 50], 0, method) for t in (x, other))
        assert torch.equal(one[:50], two[:50])


def test_one_group_of_whole_blocks_is_a_plain_mask() -> None:
    x = torch.randn(32, WIDTH)
    for method in ("mse", "mvue"):
        seed = SEED if method == "mvue" else None
        plain = torch.ops.nm.prune(x, seed, 3, 2, 4, [0], method)
        assert torch.equal(called(PruneRagged, x, [32], 0, method, 3), plain)


@pytest.mark.parametrize("shape", [(0, 5), (7, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    assert called(PruneRagged, torch.empty(shape), [0, 0], 0, "mvue").shape == shape


@pytest.mark.parametrize("cls", [PruneRagged, KeepMaskRagged])
@pytest.mark.parametrize("offsets", [torch.int32, torch.int64])
def test_opcheck(cls, offsets: torch.dtype) -> None:
    x, ends = torch.randn(6, 9).T[1:], torch.tensor([3, 3, 7], dtype=offsets)
    torch.library.opcheck(cls.operator, (x, ends, SEED, 1, 2, 4, 0, "mvue"))


def test_inductor_calls_it_with_dynamic_sizes() -> None:
    def f(x: Tensor, ends: Tensor) -> Tensor:
        return PruneRagged((x + 1).t(), ends, SEED, 2, 2, 4, 1, "mvue").run() * 2

    compiled = torch.compile(f, dynamic=True, fullgraph=True)
    for size in (8, 13):
        x, ends = torch.randn(size, 6), torch.tensor([3, 3, size - 1])
        assert torch.equal(compiled(x, ends), f(x, ends))


@pytest.mark.parametrize("method", ["mse", "mvue"])
def test_it_takes_parameters(method: str) -> None:
    x = torch.randn(SIZE, WIDTH)
    expected = called(PruneRagged, x, [13, 40], 0, method)
    found = called(PruneRagged, x.clone().requires_grad_(), [13, 40], 0, method)
    assert torch.equal(found, expected)
