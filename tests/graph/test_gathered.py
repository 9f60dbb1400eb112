"""A gather of whole matrices is a weight; a gather of rows, one for each token, is data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nmcompile.gemm import OperandKind
from tests.passes.plans import plan_of, ran

IDS, X = torch.tensor([0, 2, 1, 1, 0]), torch.randn(5, 6, 8)
STACK = torch.randn(3, 4, 8)  # [E, O, I]

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda w, ids: w[ids],
    "index_select": lambda w, ids: w.index_select(0, ids),
    "gather": lambda w, ids: w.gather(0, ids.view(-1, 1, 1).expand(-1, 4, 8)),
    "embedding": lambda w, ids: torch.embedding(w.reshape(3, 32), ids).view(-1, 4, 8),
    "rows of a table": lambda w, ids: w.reshape(3, 32)[ids].view(-1, 4, 8),
    "transposed before": lambda w, ids: w.transpose(1, 2)[ids].transpose(1, 2),
    "scaled after": lambda w, ids: w[ids] * w.abs().amax((1, 2), True)[ids],
    "two numbers for each": lambda w, ids: w.view(1, 3, 4, 8)[ids * 0, ids],
    "two for each": lambda w, ids: w[torch.stack([ids, ids], 1)][:, 0],
    "one for all": lambda w, ids: w.select(0, 1).expand(5, 4, 8),
    "a slice": lambda w, ids: w[1:][ids % 2],
}
DATA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rows": lambda w, ids: w[:, 0][torch.stack([ids] * 4, 1) % 3],
    "along the matrix": lambda w, ids: w[:, ids % 4][:, :4].repeat(2, 1, 1)[:5],
    "of what is no weight": lambda w, ids: torch.stack([w * ids[0]] * 2)[0][ids],
    "one long matrix": lambda w, ids: w[ids].view(1, 20, 8).expand(5, 20, 8),
    "joined in pairs": lambda w, ids: w[torch.stack([ids, ids], 1)].view(5, 8, 8),
    "tokens as rows": lambda w, ids: w.repeat(1, 2, 1)[:, :5][ids[:4]].transpose(0, 1),
    "scaled by data": lambda w, ids: w[ids] * ids.view(5, 1, 1),
    "times data": lambda w, ids: w[ids] * ids.view(5, 1, 1).repeat(1, 4, 8),
    "embedded, scaled": lambda w, ids: (
        torch.embedding(w.reshape(3, 32), ids).view(-1, 4, 8) * ids.view(5, 1, 1)
    ),
    "a vector for each": lambda w, ids: torch.embedding(w[:, 0], ids).view(-1, 1, 8),
}


def kind(make: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Of what is made of a stack and of tokens' numbers, as an operand beside an activation."""
    f = lambda x, w, ids: torch.bmm(x, make(w, ids).transpose(1, 2))  # noqa: E731
    (gemm,) = ran(plan_of(f, X, STACK, IDS)).gemms
    assert gemm.lhs.kind is OperandKind.ACTIVATION
    return gemm.rhs.kind


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_takes_whole_matrices_is_a_weight(name: str) -> None:
    assert kind(WEIGHTS[name]) is OperandKind.WEIGHT


@pytest.mark.parametrize("name", DATA)
def test_what_takes_less_is_data(name: str) -> None:
    assert kind(DATA[name]) is OperandKind.ACTIVATION


def test_a_token_of_a_table_is_the_activation_of_its_layer() -> None:
    f = lambda ids, w_table, w: torch.embedding(w_table, ids) @ w.t()  # noqa: E731
    (gemm,) = ran(plan_of(f, IDS, torch.randn(9, 8), torch.randn(4, 8))).gemms
    assert [o.kind for o in gemm.operands] == [OperandKind.ACTIVATION, OperandKind.WEIGHT]
