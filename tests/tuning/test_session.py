"""Losses of batches, with and without pruning."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nmcompile import ArgumentError
from nmcompile.dry_run import fresh
from nmcompile.gemm import OperandKind
from nmcompile.tuning.products import Choice
from nmcompile.tuning.session import Session, scalar
from tests.tuning.nets import Classifier, images

CHOICE = Choice(OperandKind.ACTIVATION, "2:4")


def test_a_loss_is_a_number_or_what_is_called_so() -> None:
    loss = torch.tensor([2.5])
    assert scalar(loss) == 2.5
    assert scalar({"loss": loss}) == 2.5
    assert scalar(SimpleNamespace(loss=loss, logits=None)) == 2.5
    for wrong in (torch.zeros(2), torch.tensor(3), {"logits": loss}, (loss, loss), None):
        with pytest.raises(ArgumentError, match="tune needs its loss"):
            scalar(wrong)


def test_a_batch_draws_the_same_numbers_each_time() -> None:
    """Dropout is in the model, and what differs between two runs is what is pruned."""
    session = Session(fresh(Classifier()), images(2), [CHOICE], None)
    one, other = session.loss(0).item(), session.loss(1).item()
    assert session.loss(0).item() == one != other
    keys = {p.slot.key: CHOICE for p in session.measured.found.products if p.ways}
    assert session.loss(0, keys).item() != one
    assert session.loss(0).item() == one


def test_batches_of_several_sizes_are_one_product() -> None:
    large = torch.randn(10, 4, 5, 5), torch.randint(8, (10,))
    session = Session(fresh(Classifier()), [*images(2), large], [CHOICE], None)
    session.measure(None, lambda: None)
    slots = {slot for slot, _ in session.measured.sums.moments}
    assert len(slots) == 3  # conv, up, head
    assert set(session.measured.sums.calls.values()) == {3}
