"""What the tests of training set-ups share: policies, one step, and what pruning did in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nmcompile import Policy, Rule
from tests.end_to_end.eager_oracle import Masks, Oracle

#: What the recipe "full" prunes, every mask deterministic: an independent simulation can follow.
MASKS: Masks = {
    ("fprop", "activation"): (2, 4),
    ("dgrad", "gradient"): (2, 4),
    ("wgrad", "gradient"): (2, 4),
}
RULES = [Rule(role=role, prune=kind, format="2:4", method="mse") for role, kind in MASKS]
MSE = Policy(rules=RULES)


def compiled(model: Any, policy: Any = "full", **keys: Any) -> Any:
    """``torch.compile`` with our backend and a policy; None: with Inductor itself."""
    if policy is None:
        return torch.compile(model, backend="inductor", **keys)
    options = {"policy": policy, **keys.pop("options", {})}
    return torch.compile(model, backend="nm_sparse", options=options, **keys)


def mlp(width: int = 16, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two linear layers; in float64 an oracle's gradients differ by rounding alone."""
    layers = nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width)
    return nn.Sequential(*layers).to(dtype)


def identity(width: int = 16, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A layer whose output is its operand, and whose input gradient is its gradient operand."""
    layer = nn.Linear(width, width, bias=False, dtype=dtype)
    nn.init.eye_(layer.weight)
    return layer


def density(x: Tensor) -> float:
    """The share of non-zeros."""
    return (x != 0).double().mean().item()


def loss_of(y: Tensor) -> Tensor:
    """A loss whose gradient is everywhere another."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()


def one_step(call: Callable[..., Tensor], model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The loss of ``call(*inputs)``, then the gradients of all parameters that have one."""
    model.zero_grad()
    loss = loss_of(call(*inputs))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def eager_step(model: nn.Module, *inputs: Tensor, masks: Masks = MASKS) -> list[Tensor]:
    """``one_step`` as the independent simulation computes it."""
    with Oracle(masks):
        return one_step(model, model, *inputs)


def step_under(model: nn.Module, policy: Any, *inputs: Tensor, **keys: Any) -> list[Tensor]:
    """``one_step`` of a copy of the model, compiled afresh."""
    torch._dynamo.reset()
    own = copy.deepcopy(model)
    torch.manual_seed(5)
    return one_step(compiled(own, policy, **keys), own, *inputs)


def assert_dense_is_inductor(model: nn.Module, *inputs: Tensor, **keys: Any) -> None:
    """Policy ``dense`` computes what ``backend="inductor"`` does, bit for bit."""
    assert_equal(*(step_under(model, policy, *inputs, **keys) for policy in ("dense", None)))


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit for bit."""
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal up to float64 rounding: one element masked otherwise is far outside."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def prunes_run(call: Callable[[], Any]) -> int:
    """How many masks were computed during a call, in forward or backward."""
    with torch.profiler.profile(record_shapes=True) as profile:
        call()
    events = [e for e in profile.events() if e.key.startswith("nm::prune")]
    return sum(_masks(event) for event in events)


def _masks(event: Any) -> int:
    """How many masks an operator computed: ``prune_each`` one for each of its streams."""
    return len(event.concrete_inputs[2]) if event.key == "nm::prune_each" else 1


def roles(sites: Iterable[Any]) -> list[tuple[str, str, str | None]]:
    """(module, role, pruned operand) of the rows of a report, sorted."""
    return sorted((s.module, str(s.role), s.pruned and str(s.pruned)) for s in sites)
