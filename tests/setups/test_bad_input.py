"""What is wrong with a model or its numbers is seen as without pruning."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from tests.setups.steps import MSE, compiled, loss_of, mlp


class Mismatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 4:
            raise ValueError("too many tokens")
        return x


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Misspelt(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.fist(x)


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("model", [Mismatched, Raising, Branching, Misspelt])
def test_an_error_of_the_model_is_what_inductor_shows(model: Any, fullgraph: bool) -> None:
    errors: list[tuple[type, str]] = []
    for policy in ("full", None):
        torch._dynamo.reset()
        try:
            compiled(model(), policy, fullgraph=fullgraph)(torch.randn(8, 16))
        except Exception as error:
            errors.append((type(error), re.sub("0x[0-9a-f]+", "", str(error))))
    assert len(errors) == (0 if model is Branching and not fullgraph else 2)
    assert len(set(errors)) <= 1, "another error than Inductor's"
    assert not any(issubclass(kind, nmcompile.NMError) for kind, _ in errors)
    assert not any("nm_sparse" in text or "nmcompile" in text for _, text in errors)


class Spoilt(nn.Module):
    """Two linear layers around a buffer in which a test can put a NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, _, self.last = mlp(dtype=torch.float32)
        self.register_buffer("between", torch.ones(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        return loss_of(self.last(torch.tanh(self.first(x)) * self.between))


def in_input(model: Spoilt, x: Tensor) -> None:
    x[3, 5] = torch.nan


def in_weight(model: Spoilt, x: Tensor) -> None:
    model.first.weight[7, 2] = torch.nan


def in_every_weight_of_a_block(model: Spoilt, x: Tensor) -> None:
    model.last.weight[4:8, 4:8] = torch.nan


def in_between(model: Spoilt, x: Tensor) -> None:
    model.between[6, 21] = torch.nan


PLACES: list[Callable[[Spoilt, Tensor], None]] = [
    in_input,
    in_weight,
    in_every_weight_of_a_block,
    in_between,
]


def step(policy: Any, spoil: Callable[[Spoilt, Tensor], None]) -> dict[str, Tensor]:
    """The loss and the gradients of the input and of all parameters, of one spoilt step."""
    torch.manual_seed(1)
    model, x = Spoilt(), torch.randn(8, 16)
    with torch.no_grad():
        spoil(model, x)
    loss = compiled(model, policy)(x.requires_grad_())
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), "x": x.grad, **grads}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["full", MSE, "weights"], ids=["full", "mse", "weights"])
def test_no_nan_of_the_dense_step_is_hidden(policy: Any) -> None:
    """Every element that is NaN without pruning: MVUE may make it infinite, MSE leaves it."""
    for spoil in PLACES:
        dense, pruned = step("dense", spoil), step(policy, spoil)
        assert dense["loss"].isnan()
        assert pruned["loss"].isnan()
        assert any(value.isnan().any() for name, value in dense.items() if name != "loss")
        for name, expected in dense.items():
            found = pruned[name].isnan() if policy is MSE else ~pruned[name].isfinite()
            assert not (expected.isnan() & ~found).any(), f"{spoil.__name__}: hidden in {name}"


@pytest.mark.slow
def test_the_exact_backward_masks_gradients_but_hides_no_nan() -> None:
    """The gradient of a pruned element is zero whatever comes in; a kept one passes it on."""
    for spoil in PLACES:
        dense, pruned = step("dense", spoil), step("full-exact", spoil)
        assert pruned["loss"].isnan()
        for name, expected in dense.items():
            if expected.isnan().any():
                assert not pruned[name].isfinite().all(), f"{spoil.__name__}: hidden in {name}"
