"""The terms of figures: of calls that are made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nmcompile import functional
from nmcompile.diagnostics import figures
from nmcompile.diagnostics.figures import BLOCKS, Sample, count, packed
from nmcompile.ops.observe import Observe, ObservedSite

DGRAD = ObservedSite("fc", "dgrad", 0, "gradient", "2:4", "mvue", (1,))
WEIGHT = ObservedSite("fc", "fprop", 0, "weight", "2:4", "transposable", (1,))


def call(site: ObservedSite, dense: Tensor, pruned: Tensor, *beside: Tensor, **rest: Any) -> Any:
    result = rest.get("result")
    return Observe(torch.zeros(1), dense, pruned, list(beside), result, 0, site.to_json())


def figures_of(*calls: Any) -> dict[str, float]:
    sample = Sample({})
    for each in calls:
        sample(each)
    (found,) = sample.figures().values()
    return found


@pytest.mark.parametrize("form", ["1:2", "2:4", "1:4", "2:8"])
@pytest.mark.parametrize("method", ["mvue", "uniform"])
def test_the_variance_is_that_of_many_masks(form: str, method: str) -> None:
    x = torch.randn(16, 24)
    site = replace(DGRAD, format=form, method=method)
    found = figures_of(call(site, x, functional.prune(x, form, 1, method)))
    masks = [functional.prune(x, form, 1, method) - x for _ in range(400)]
    measured = sum(m.square().sum() for m in masks) / len(masks) / x.square().sum()
    assert found["variance"] == pytest.approx(measured.item(), rel=0.05)


def test_blocks_of_channel_groups_lie_inside_of_one() -> None:
    # 2 groups of 6 channels: blocks of 4 and 2 in each, and not 3 of 4.
    x = torch.zeros(1, 12, 1)
    x[0, [4, 5, 6, 7], 0] = 1.0  # no block of a group has more than two of them
    p = x.clone()
    site = replace(DGRAD, dims=(1,), groups=2)
    assert figures_of(call(site, x, p))["variance"] == 0
    assert figures_of(call(replace(site, groups=1), x, p))["variance"] > 0.5


def test_of_many_blocks_some_are_taken_evenly() -> None:
    x = torch.randn(5 * BLOCKS, 8) * torch.linspace(0.1, 2, 5 * BLOCKS)[:, None]
    found = figures._probabilities(call(DGRAD, x, x), DGRAD)
    assert BLOCKS <= found["blocks"] < 1.2 * BLOCKS
    p = functional.inclusion_probability(x, "2:4", 1)
    exact = (x.square() * (1 / p - 1)).sum() / x.square().sum()
    assert (found["added"] / found["some"]).item() == pytest.approx(exact.item(), rel=0.05)
    assert figures._probabilities(call(DGRAD, x[:5], x[:5]), DGRAD)["blocks"] == 10


def test_a_block_with_as_many_terms_as_are_kept_is_sure_and_one_of_zeros_is_not() -> None:
    x = torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 0, 1, 1, 1, 1]])
    found = figures_of(call(DGRAD, x, x))
    assert found["saturation"] == pytest.approx(1 / 3)
    assert found["variance"] == pytest.approx(4 / 9)  # of the ones: 1/p - 1 = 1 of each


def test_blocks_of_groups_of_rows_have_no_probabilities() -> None:
    x = torch.randn(8, 8)
    found = figures_of(call(replace(DGRAD, ragged=True), x, functional.prune(x, "2:4", 1)))
    assert found.keys() == {"energy"}


@pytest.mark.parametrize("given", [True, False])
def test_the_cosine_of_weight_gradients(given: bool) -> None:
    dy, x = torch.randn(12, 16), torch.randn(16, 8)
    pruned = functional.prune(dy, "2:4", 1, "mvue")
    site = replace(DGRAD, role="wgrad", target="aten.mm.default", words=([], [0]))
    result = pruned @ x if given else None
    found = figures_of(call(site, dy, pruned, x, result=result))
    expected = torch.nn.functional.cosine_similarity((dy @ x).view(1, -1), (pruned @ x).view(1, -1))
    assert found["cosine"] == pytest.approx(expected.item(), rel=1e-5)


def test_new_places_are_counted_call_by_call() -> None:
    weights = torch.randn(2, 8, 12)
    first, second = (functional.prune(w, "2:4", method="transposable") for w in weights)
    before = Sample({})
    for kept in (first, first):
        before(call(WEIGHT, weights[0], kept))
    after = Sample(before.places)
    for kept in (first, second):
        after(call(WEIGHT, weights[0], kept))
    (found,) = after.figures().values()
    new = ((second != 0) & (first == 0)).sum() / (2 * (first != 0).sum())
    assert found["flips"] == pytest.approx(new.item())


def test_a_weight_of_another_size_has_no_new_places() -> None:
    before = Sample({})
    before(call(WEIGHT, torch.ones(8, 8), torch.ones(8, 8)))
    after = Sample(before.places)
    after(call(WEIGHT, torch.ones(8, 16), torch.ones(8, 16)))
    (found,) = after.figures().values()
    assert "flips" not in found


@pytest.mark.parametrize("shape", [(3,), (8,), (5, 7), (0,)])
def test_places_are_packed(shape: tuple[int, ...]) -> None:
    keep = torch.rand(shape) < 0.5
    places = packed(keep)
    assert places.numel() == -(-keep.numel() // 8)
    assert count(places) == keep.sum()
