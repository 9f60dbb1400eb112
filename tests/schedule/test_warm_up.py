"""What warming up leaves as it was; nothing is compiled here."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nmcompile import ScheduleError
from nmcompile.schedule.warm_up import run, untouched


class Net(nn.Module):
    """Everything that a step changes: running statistics, a counter that is replaced, dropout."""

    counter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("counter", torch.zeros(()), persistent=False)
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        self.counter = self.counter + random.random()
        return self.drop(self.norm(self.fc(x)))


def state(model: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach().clone() for name, t in tensors.items()}


def test_nothing_is_changed() -> None:
    model, x = Net(), torch.randn(8, 4)
    model(x).sum().backward()
    before, gradients = state(model), [p.grad for p in model.parameters()]
    copies = [g.clone() for g in gradients if g is not None]
    counter, numbers, python = model.counter, torch.get_rng_state(), random.getstate()
    with untouched(model):
        run(model, (x,), {})
        assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])
        assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, c) for g, c in zip(gradients, copies, strict=True))
    assert model.counter is counter
    assert torch.equal(torch.get_rng_state(), numbers)
    assert random.getstate() == python


def test_nothing_is_changed_by_a_failure_either() -> None:
    model = Net()
    before = state(model)
    right, wrong = torch.randn(8, 4), torch.randn(8, 5)

    def twice() -> None:
        with untouched(model):
            run(model, (right,), {})
            run(model, (wrong,), {})

    with pytest.raises(RuntimeError):
        twice()
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert all(p.grad is None for p in model.parameters())


def test_an_optimizer_in_the_backward_makes_no_step_and_stays() -> None:
    model, x, calls = nn.Linear(4, 4), torch.randn(8, 4), []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: calls.append(p.add_(1)))
    with untouched(model):
        run(model, (x,), {})
    assert calls == []
    model(x).sum().backward()
    assert len(calls) == 2


def test_a_model_that_changes_a_parameter_is_told() -> None:
    class Moving(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.mul_(0.9)
            return super().forward(x)

    model = nn.Sequential(Moving(4, 4))
    with pytest.raises(ScheduleError, match=r"parameter 0\.weight was changed"), untouched(model):
        run(model, (torch.randn(8, 4),), {})


def test_the_callers_tensors_get_no_gradient_and_keep_their_graph() -> None:
    leaf = torch.randn(8, 4, requires_grad=True)
    inner = leaf * 2
    run(nn.Linear(4, 4), (inner,), {})
    assert leaf.grad is None
    inner.sum().backward()  # its graph is still there
    assert leaf.grad is not None


@dataclass
class Output:
    loss: Tensor
    name: str = ""


@pytest.mark.parametrize("wrap", [lambda t: {"a": [t, 1]}, lambda t: (None, t), Output])
def test_the_backward_begins_at_whatever_was_returned(wrap: Any) -> None:
    class Wrapped(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    model = Wrapped(4, 4)
    run(model, (torch.randn(8, 4),), {})
    assert model.weight.grad is not None


def test_without_gradients_there_is_no_backward() -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        run(model, (), {"input": torch.randn(8, 4)})
    assert model.weight.grad is None
