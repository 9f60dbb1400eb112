"""``nm::grouped_gradient``: each result is that of transformers' operator, bit for bit."""

from __future__ import annotations

import pytest
import torch

from nmcompile.ops.schemas import GroupedGradient

pytest.importorskip("transformers", reason="its operators are what is split")
import transformers.integrations.moe  # noqa: F401  (registers them)


@pytest.mark.parametrize("ends", [[3, 3, 8], [0, 0, 0], [9, 9, 9], [1, 2, 4]])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_one_result_of_the_operator(ends: list[int], transposed: bool) -> None:
    x, dy, offs = torch.randn(9, 4), torch.randn(9, 6), torch.tensor(ends, dtype=torch.int32)
    w = torch.randn(3, 6, 4).transpose(1, 2) if transposed else torch.randn(3, 4, 6)
    both = torch.ops.transformers.grouped_mm_fallback_backward(x, w, offs, dy)
    for of_weight, expected in enumerate(both):
        found = GroupedGradient(x, w, offs, dy, bool(of_weight)).run()
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()


@pytest.mark.parametrize("of_weight", [False, True])
def test_it_takes_parameters(of_weight: bool) -> None:
    x, w, dy = torch.randn(9, 4), torch.nn.Parameter(torch.randn(3, 4, 6)), torch.randn(9, 6)
    offs = torch.tensor([2, 2, 8])
    found = GroupedGradient(x.requires_grad_(), w, offs, dy, of_weight).run()
    assert torch.equal(found, GroupedGradient(x.detach(), w.detach(), offs, dy, of_weight).run())


@pytest.mark.parametrize("of_weight", [False, True])
def test_opcheck(of_weight: bool) -> None:
    x, w, dy = torch.randn(9, 4), torch.randn(3, 6, 4).transpose(1, 2), torch.randn(9, 6)
    arguments = (x, w, torch.tensor([2, 2, 8]), dy, of_weight)
    torch.library.opcheck(GroupedGradient.operator, arguments)
