"""Layers that are not trained, and adapters beside them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile.gemm import OperandKind
from tests.setups.steps import (
    MSE,
    assert_close,
    assert_dense_is_inductor,
    compiled,
    eager_step,
    one_step,
    roles,
)


def chain() -> nn.Sequential:
    layers = [nn.Linear(16, 16, dtype=torch.float64) for _ in range(4)]
    return nn.Sequential(
        layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.Tanh(), layers[3]
    )


#: Which of the layers 0, 2, 4, 6 are frozen; which of them then have wgrad, which dgrad.
FROZEN = {
    "start": ([0, 2], [4, 6], [6]),
    "middle": ([2, 4], [0, 6], [2, 4, 6]),
    "all but the last": ([0, 2, 4], [6], []),
    "all but the first": ([2, 4, 6], [0], [2, 4, 6]),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", FROZEN)
def test_frozen_layers(which: str) -> None:
    frozen, with_wgrad, with_dgrad = FROZEN[which]
    model, x = chain(), torch.randn(8, 16, dtype=torch.float64)
    for index in frozen:
        model[index].requires_grad_(False)
    assert_close(one_step(compiled(model, MSE), model, x), eager_step(model, x))
    expected: list[tuple[str, str, str | None]] = []
    expected += [(str(i), "dgrad", "gradient") for i in with_dgrad]
    expected += [(str(i), "fprop", "activation") for i in (0, 2, 4, 6)]
    expected += [(str(i), "wgrad", "gradient") for i in with_wgrad]
    assert roles(nmcompile.last_report().sites) == sorted(expected)
    kinds = {frozenset(s.operands) for s in nmcompile.last_report().sites if s.role != "wgrad"}
    assert kinds == {
        frozenset(k)
        for k in (
            [OperandKind.ACTIVATION, OperandKind.WEIGHT],
            *([[OperandKind.GRADIENT, OperandKind.WEIGHT]] if with_dgrad else []),
        )
    }
    if which == "middle":
        assert_dense_is_inductor(model, x)


class Lora(nn.Module):
    """A frozen linear layer plus a trained product of two narrow ones."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


def assert_adapters_alone_are_trained(model: nn.Module, x: Tensor, adapters: Sequence[str]) -> None:
    assert_close(one_step(compiled(model, MSE), model, x), eager_step(model, x))
    sites = nmcompile.last_report().sites
    trained = sorted(s.module for s in sites if s.role == "wgrad")
    assert trained == sorted(adapters)
    assert all(OperandKind.WEIGHT in s.operands for s in sites if s.role != "wgrad")
    assert all(s.pruned for s in sites)


@pytest.mark.slow
def test_own_adapters() -> None:
    model = chain()
    for i in (0, 4):
        model[i] = Lora(model[i])
    for i in (2, 6):
        model[i].requires_grad_(False)
    x = torch.randn(8, 16, dtype=torch.float64)
    names = [f"{i}.{part}" for i in (0, 4) for part in ("down", "up")]
    assert_adapters_alone_are_trained(model, x, names)
    assert_dense_is_inductor(model, x)


@pytest.mark.slow
def test_peft_adapters() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["0", "4"], init_lora_weights=False)
    model = peft.get_peft_model(chain(), config).double()
    x = torch.randn(8, 16, dtype=torch.float64)
    names = [f"base_model.model.{i}.lora_{part}.default" for i in (0, 4) for part in ("A", "B")]
    assert_adapters_alone_are_trained(model, x, names)


@pytest.mark.slow
def test_thawing_a_layer_compiles_its_weight_gradient() -> None:
    model, x = chain(), torch.randn(8, 16, dtype=torch.float64)
    model[2].requires_grad_(False)
    run = compiled(model, MSE)
    assert_close(one_step(run, model, x), eager_step(model, x))
    model[2].requires_grad_(True)
    found = one_step(run, model, x)
    assert len(found) == 9  # the loss, four weights, four biases
    assert_close(found, eager_step(model, x))
