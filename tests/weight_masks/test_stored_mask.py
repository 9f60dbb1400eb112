"""The mask of a parameter equals the one that a product takes of it."""

from __future__ import annotations

import pytest
import torch

from nmcompile.masks import reference
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.weight_masks.stored_mask import StoredMask

FORM = NMFormat(2, 4)
TRANSPOSABLE = Method.TRANSPOSABLE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [Method.MSE, TRANSPOSABLE])
def test_it_is_the_oracles(method: Method, dtype: torch.dtype) -> None:
    weight = torch.randn(12, 18, dtype=dtype)  # M divides one dimension
    dims = (0, 1) if method is TRANSPOSABLE else (1,)
    mask = StoredMask(FORM, method, dims).take(weight)
    assert torch.equal(mask, reference.prune_and_mask(weight, None, 0, 2, 4, dims, str(method))[1])


def test_it_lies_as_the_weight_does() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    stored = StoredMask(FORM, TRANSPOSABLE, (0, 1))
    assert stored.take(weight).stride() == stored.place(weight).stride() == weight.stride()
    assert stored.place(weight).dtype is torch.bool


def test_blocks_do_not_cross_groups() -> None:
    weight = torch.randn(12, 4)  # two groups of six rows, which 4 does not divide
    mask = StoredMask(FORM, Method.MSE, (0,), groups=2).take(weight)
    each = [reference.prune_and_mask(w, None, 0, 2, 4, (0,), "mse")[1] for w in weight.chunk(2)]
    assert torch.equal(mask, torch.cat(each))


def test_both_products_of_a_transposable_mask_have_the_same_one() -> None:
    fprop = StoredMask.of(FORM, TRANSPOSABLE, ([1], 1), ([1, 0], 1))
    dgrad = StoredMask.of(FORM, TRANSPOSABLE, ([0], 1), ([0, 1], 1))
    assert fprop == dgrad
    assert str(fprop) == "2:4 transposable along 0, 1"
    assert StoredMask.of(FORM, Method.MSE, ([1], 1), None) != fprop


def test_a_mask_that_is_taken_in_inference_can_be_saved_for_a_backward() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    with torch.inference_mode():
        mask = StoredMask(FORM, Method.MSE, (1,)).take(weight)
    assert not mask.is_inference()
    assert not mask.requires_grad
