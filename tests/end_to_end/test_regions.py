"""A region computes what its modules would compute without it, and draws masks at every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from tests.graph.calls import Block, Map, Plain, network

X = torch.randn(24, 16)


def step(block: Callable[[], nn.Module], policy: str) -> list[Tensor]:
    """Output and all gradients of one step."""
    model, x = network(block), X.clone().requires_grad_()
    y = torch.compile(model, backend="nm_sparse", options={"policy": policy})(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]  # type: ignore[list-item]


def test_masks_without_random_numbers_are_those_of_the_plain_model() -> None:
    for policy in ("dense", "activations", "mse-gradients"):
        plain, region = (step(block, policy) for block in (Plain, Block))
        report = nmcompile.last_report()
        assert bool(report.totals.pruned_sites) == (policy != "dense")
        assert all(torch.equal(one, other) for one, other in zip(plain, region, strict=True))


class Layer(nn.Linear):
    """A region of one layer."""

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_every_call_draws_masks_of_its_own() -> None:
    one, other = Layer(16, 16, bias=False), Layer(16, 16, bias=False)
    other.load_state_dict(one.state_dict())
    loss = torch.compile(
        lambda x: (one(x) + other(x)).square().sum(),
        backend="nm_sparse",
        options={"policy": "gradients"},
    )
    drawn = []
    for _ in range(2):
        one.zero_grad()
        other.zero_grad()
        loss(X).backward()
        drawn += [layer.weight.grad.clone() for layer in (one, other)]  # type: ignore[union-attr]
    assert len({tuple(g.flatten().tolist()) for g in drawn}) == 4


class Unrolled(Plain):
    """What ``Map`` is without a loop."""

    def forward(self, x: Tensor) -> Tensor:
        layers = super().forward
        return torch.stack([layers(part) for part in x.reshape(3, -1, 16)])


def loop_step(loop: type[nn.Module], policy: nmcompile.Policy | str, x: Tensor) -> list[Tensor]:
    """Output and gradients of one step of a loop."""
    torch.manual_seed(0)
    model, x = loop(), x.clone().requires_grad_()
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        y = torch.compile(model, backend="nm_sparse", options={"policy": policy})(x)
        y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]  # type: ignore[list-item]


def test_a_loop_prunes_as_its_iterations_would_and_draws_in_each() -> None:
    rules = [
        {"role": "fprop", "prune": "activation", "format": "2:4", "method": "mse"},
        {"role": ["dgrad", "wgrad"], "prune": "gradient", "format": "2:4", "method": "mse"},
    ]
    policy = nmcompile.Policy.resolve({"schema": 1, "rule": rules})
    plain, looped = (loop_step(loop, policy, X) for loop in (Unrolled, Map))
    for one, other in zip(plain, looped, strict=True):
        torch.testing.assert_close(one, other)
    (_, gradient, *_) = loop_step(Map, "gradients", X[:8].repeat(3, 1))
    first, second, third = gradient.split(8)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


SAVED: dict[str, Callable[[Tensor], Tensor]] = {
    "its input": torch.nn.functional.silu,
    "its result": torch.tanh,
    "a view of its result": lambda x: torch.softmax(x.view(12, 32) * 2, -1).t().reshape(24, 16),
    "nothing": lambda x: -x,
}


@pytest.mark.parametrize("name", SAVED)
def test_gradients_through_a_region_are_those_of_eager_mode(name: str) -> None:
    """Torch 2.13's Inductor writes over what a region called twice has saved."""
    region = torch.compiler.nested_compile_region(lambda x: SAVED[name](x))

    def loss(x: Tensor) -> Tensor:
        inside = x * 3
        first = region(inside)
        second = region((first + 1) * 2)
        return ((first + 1) * second).sin() + inside.sum() + first

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = X.double().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    compiled = torch.compile(loss, backend="nm_sparse", options={"policy": "dense"})
    torch.testing.assert_close(gradient(compiled), gradient(loss))
