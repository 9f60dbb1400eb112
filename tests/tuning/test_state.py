"""A model is left as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmcompile._torch import FakeTensorMode
from nmcompile.tuning.state import digest_of, has_values, untouched
from tests.tuning.nets import Classifier


def test_buffers_modes_and_the_random_state_are_put_back() -> None:
    model = Classifier()
    buffer, before = model.norm.running_mean, model.norm.running_mean.clone()
    count, random = model.norm.num_batches_tracked, torch.get_rng_state()

    def change() -> None:
        with untouched([model]):
            model(torch.randn(6, 4, 5, 5), torch.zeros(6).long())
            model.eval()
            model.norm.num_batches_tracked = torch.tensor(17)
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        change()
    assert model.norm.running_mean is buffer
    assert torch.equal(buffer, before)
    assert model.norm.num_batches_tracked is count
    assert count == 0
    assert model.training
    assert model.norm.training
    assert torch.equal(torch.get_rng_state(), random)


def test_models_without_values() -> None:
    assert has_values([nn.Linear(2, 2)])
    with torch.device("meta"):
        assert not has_values([nn.Linear(2, 2)])
    with FakeTensorMode():
        assert not has_values([nn.Linear(2, 2)])


def test_a_digest_is_of_shape_type_and_value() -> None:
    x = torch.randn(4, 6)
    same = digest_of([x, 3, "a"])
    assert digest_of([x.clone(), 3, "a"]) == same
    assert digest_of([x.t().contiguous().t(), 3, "a"]) == same
    others = [[x.view(6, 4), 3, "a"], [x.to(torch.bfloat16), 3, "a"], [x + 1, 3, "a"], [x, 4, "a"]]
    assert same not in map(digest_of, others)
    assert digest_of(torch.zeros(3, dtype=torch.bfloat16)) != digest_of(torch.zeros(2))
