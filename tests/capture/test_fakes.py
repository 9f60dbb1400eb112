"""A model on the meta device is looked at as fake tensors, and has its own again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from nmcompile.capture.fakes import off_meta


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(4))
        self.plain = torch.ones(4)


def test_everything_is_fake_inside_and_as_it_was_afterwards() -> None:
    with torch.device("meta"):
        model, x = Tied(), torch.randn(2, 4, requires_grad=True)
    before = [*model.parameters(), model.scale, model.plain]
    with off_meta(model, ((x, 3), {"y": x})) as ((given, number), keywords):
        inside = [*model.parameters(), model.scale, model.plain, given]
        assert all(isinstance(t, FakeTensor) and t.device.type == "cpu" for t in inside)
        assert isinstance(model.first.weight, nn.Parameter)
        assert model.second.weight is model.first.weight
        assert (number, keywords["y"] is given, given.requires_grad) == (3, True, True)
        assert torch.ones(1).device.type == "cpu"
    after = [*model.parameters(), model.scale, model.plain]
    assert all(a is b for a, b in zip(after, before, strict=True))


def test_what_it_is_called_under_the_meta_device_makes_no_meta_tensors() -> None:
    with torch.device("meta"):
        model = nn.Linear(4, 4)
        with off_meta(model, ()):
            assert torch.ones(1).device.type == "cpu"


def test_a_real_model_is_left_alone() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    weight = model.weight
    with off_meta(model, x) as given:
        assert given is x
        assert model.weight is weight


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = nn.Linear(4, 4, device="meta")
    with pytest.raises(ZeroDivisionError), off_meta(model, ()):
        raise ZeroDivisionError
    assert model.weight.is_meta
