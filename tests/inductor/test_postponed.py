"""What ``explain`` calls is computed when something reads it, as it is then, and else never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile.inductor import postponed
from nmcompile.inductor.interpreter import DenseInterpreter

Read = Callable[[Tensor], Any]


class Net(nn.Module):
    """Two graphs, between which ``read`` looks at what the first one gave."""

    def __init__(self, read: Read, change: Callable[[Tensor], Any] = lambda x: None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.read, self.change = read, change
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.look(x, y)
        return self.b(y)

    @torch.compiler.disable
    def look(self, x: Tensor, y: Tensor) -> None:
        self.change(x)
        self.seen = self.read(y)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nodes of every graph that was computed."""
    found: list[int] = []

    class Counting(DenseInterpreter):
        def boxed_run(self, args: list[Any]) -> Any:
            found.append(len(self.graph.nodes))
            return super().boxed_run(args)

    monkeypatch.setattr(postponed, "DenseInterpreter", Counting)
    return found


def inputs() -> Tensor:
    return torch.randn(4, 8, requires_grad=True)


def test_what_nothing_reads_is_not_computed(computed: list[int]) -> None:
    report = nmcompile.explain(Net(lambda y: y.shape), inputs())
    assert [g.calls for g in report.graphs] == [1, 1]
    assert computed == []


def reads() -> dict[str, Read]:
    return {
        "list": Tensor.tolist,
        "number": lambda y: float(y[0, 0]),
        "array": lambda y: y.detach().numpy().copy().tolist(),
        "result": lambda y: (y + 0).tolist(),
        "copy": lambda y: y.detach().clone().tolist(),
    }


@pytest.mark.parametrize("way", list(reads()))
def test_what_is_read_is_what_was_called(way: str, computed: list[int]) -> None:
    net, x = Net(lambda y: reads()[way](y)), inputs()
    nmcompile.explain(net, x)
    assert len(computed) == 1  # the second graph is read by nobody
    expected = net.a(x).detach()
    wanted = float(expected[0, 0]) if way == "number" else expected.tolist()
    assert torch.allclose(torch.tensor(net.seen), torch.tensor(wanted), atol=1e-6)


def test_it_is_computed_before_its_input_changes() -> None:
    x = torch.randn(4, 8)
    net = Net(Tensor.tolist, change=Tensor.zero_)
    expected = net.a(x).detach()
    nmcompile.explain(net, x)
    assert torch.count_nonzero(x) == 0
    assert torch.allclose(torch.tensor(net.seen), expected, atol=1e-6)


def test_random_numbers_are_drawn_in_their_turn() -> None:
    class Random(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.dropout(self.a(x))
            self.look(x, y)
            return self.b(y)

    seen = []
    for read in (lambda y: torch.rand(3).tolist(), lambda y: (y + 0, torch.rand(3).tolist())[1]):
        torch.manual_seed(0)
        net, x = Random(read), inputs()
        nmcompile.explain(net, x)
        seen.append(net.seen)
    assert seen[0] == seen[1]  # the dropout's come first, whether it was read or not


def test_a_graph_that_writes_is_computed_at_once(computed: list[int]) -> None:
    seen = []

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            self.look()
            return y

        @torch.compiler.disable
        def look(self) -> None:
            seen.append(self.norm.running_mean.tolist())

    x = inputs()
    nmcompile.explain(Norm(), x)
    assert len(computed) == 1
    assert torch.allclose(torch.tensor(seen[0]), 0.1 * x.detach().mean(0), atol=1e-6)


def test_a_backward_inside_of_the_model_has_its_gradients() -> None:
    net, x = Net(lambda y: torch.autograd.grad(y.square().sum(), net.a.weight)[0].clone()), inputs()
    nmcompile.explain(net, x)
    (expected,) = torch.autograd.grad(net.a(x).square().sum(), net.a.weight)
    assert torch.allclose(net.seen, expected, atol=1e-5)


@pytest.mark.parametrize("kept", [lambda y: y, lambda y: y[1:].detach(), lambda y: {"a": [y]}])
def test_what_the_model_keeps_has_its_values(kept: Read, computed: list[int]) -> None:
    """Also where a module in between keeps it, and where a backward comes later."""
    net, x = Net(kept), inputs()
    nmcompile.explain(net, x)
    assert len(computed) == 1
    seen = net.seen["a"][0] if isinstance(net.seen, dict) else net.seen
    expected = net.a(x)
    assert torch.allclose(seen, expected if len(seen) == 4 else expected[1:], atol=1e-6)
    if seen.requires_grad:
        (gradient,) = torch.autograd.grad(seen.square().sum(), net.a.weight)
        (wanted,) = torch.autograd.grad(expected.square().sum(), net.a.weight)
        assert torch.allclose(gradient, wanted, atol=1e-5)


def test_tolist_is_pytorchs_own_again() -> None:
    nmcompile.explain(Net(Tensor.tolist), inputs())
    assert "tolist" not in vars(Tensor)
    assert torch.ones(2).tolist() == [1.0, 1.0]
