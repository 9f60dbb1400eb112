"""Random networks under random policies: equal to an independent oracle, or unbiased.

Through ``rewrite`` on a hand-traced step (many networks, nothing compiled but the masks) and,
for fewer, through the compiled backend.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from nmcompile import Policy, Rule
from tests.end_to_end.eager_oracle import Masks, Oracle
from tests.end_to_end.networks import networks

FORMATS = st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (2, 6), (4, 8)])
#: One pruned operand for each role, or none.
KINDS = {
    "fprop": st.sampled_from([None, "activation", "weight"]),
    "dgrad": st.sampled_from([None, "gradient", "weight"]),
    "wgrad": st.sampled_from([None, "gradient"]),
}


@st.composite
def mask_sets(draw: st.DrawFn) -> Masks:
    kinds = {role: draw(kind) for role, kind in KINDS.items()}
    return {(role, kind): draw(FORMATS) for role, kind in kinds.items() if kind}


def policy_of(masks: Masks) -> Policy:
    return Policy(
        rules=[
            Rule(role=role, prune=kind, format=f"{n}:{m}", method="mse")
            for (role, kind), (n, m) in masks.items()
        ]
    )


def loss_of(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()


def eager_gradients(model: nn.Module, x: Tensor, masks: Masks) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with Oracle(masks):
        loss = loss_of(model(x))
        grads = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]


def rewritten_gradients(model: nn.Module, x: Tensor, policy: Policy) -> list[Tensor]:
    params = {k: v.detach().requires_grad_() for k, v in model.named_parameters()}

    def step(params: dict[str, Tensor], x: Tensor) -> Any:
        loss = loss_of(functional_call(model, params, (x,)))
        return loss, torch.autograd.grad(loss, [x, *params.values()], allow_unused=True)

    x = x.detach().requires_grad_()
    weights = "params_*" if params else []
    gm = nmcompile.rewrite(make_fx(step)(params, x), policy, weights=weights)
    loss, grads = gm(params, x)
    return [loss, *(g for g in grads if g is not None)]


def compiled_gradients(model: nn.Module, x: Tensor, policy: Policy) -> list[Tensor]:
    torch._dynamo.reset()
    x = x.detach().requires_grad_()
    compiled = torch.compile(
        lambda x: loss_of(model(x)), backend="nm_sparse", options={"policy": policy}
    )
    loss = compiled(x)
    grads = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


DENSE = {"policy": "dense"}
COMMON = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


@pytest.mark.slow
@settings(max_examples=60, **COMMON)
@given(networks(), mask_sets(), st.integers(1, 3))
def test_rewritten_networks_equal_the_oracle(model: nn.Module, masks: Masks, batch: int) -> None:
    x = torch.randn(batch, 9, 8, dtype=torch.float64)
    same(rewritten_gradients(model, x, policy_of(masks)), eager_gradients(model, x, masks))


@pytest.mark.slow
@settings(max_examples=5, **COMMON)
@given(networks(), mask_sets())
def test_compiled_networks_equal_the_oracle(model: nn.Module, masks: Masks) -> None:
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    same(compiled_gradients(model, x, policy_of(masks)), eager_gradients(model, x, masks))


GRADIENTS = Rule(prune="gradient", format="2:4")
SPARSE_RULES = {
    "full-exact": [
        Rule(prune="activation", role="fprop", format="2:4", backward="exact"),
        GRADIENTS,
    ],
    "weights": [
        Rule(prune="weight", role="fprop", format="2:4", method="mse", backward="exact"),
        Rule(prune="weight", role="dgrad", format="1:2", method="mse"),
        GRADIENTS,
    ],
    "others": [
        Rule(prune="activation", role="wgrad", format="2:4", method="mse"),
        Rule(prune="gradient", role="dgrad", format="1:2"),
        Rule(prune="activation", role="fprop", format="2:4"),
    ],
}


@pytest.mark.slow
@settings(max_examples=30, **COMMON)
@given(networks(), st.sampled_from(sorted(SPARSE_RULES)))
def test_sparse_networks_equal_simulated_ones(model: nn.Module, name: str) -> None:
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    found = []
    for execution in ("simulate", "sparse"):
        torch.manual_seed(0)
        policy = Policy(rules=SPARSE_RULES[name], execution=execution, fallback="simulate")
        found.append(rewritten_gradients(model, x, policy))
    same(*found)


@pytest.mark.slow
@settings(max_examples=8, **COMMON)
@given(networks(), st.sampled_from(["1:2", "2:4", "2:6"]))
def test_mvue_gradients_are_unbiased(model: nn.Module, fmt: str) -> None:
    rule = Rule(role=("dgrad", "wgrad"), prune="gradient", format=fmt, method="mvue")
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    params = {k: v.detach().requires_grad_() for k, v in model.named_parameters()}

    def step(params: dict[str, Tensor], x: Tensor) -> Any:
        loss = loss_of(functional_call(model, params, (x,)))
        return torch.autograd.grad(loss, [x, *params.values()], allow_unused=True)

    leaf = x.detach().requires_grad_()
    gm = nmcompile.rewrite(make_fx(step)(params, leaf), Policy(rules=[rule]), weights="params_*")
    samples = [[g for g in gm(params, leaf) if g is not None] for _ in range(200)]
    dense = [g for g in step(params, leaf) if g is not None]
    for sample, expected in zip(zip(*samples, strict=True), dense, strict=True):
        stacked = torch.stack(sample)
        mean, error = stacked.mean(0), stacked.std(0) / len(samples) ** 0.5
        # 5.5 sigma: some thousand elements are looked at. What never varies must be exact.
        assert ((mean - expected).abs() <= 5.5 * error + 1e-9 * expected.abs().max()).all()


@pytest.mark.slow
@settings(max_examples=3, **COMMON)
@given(networks())
def test_policy_dense_is_inductor_bit_for_bit(model: nn.Module) -> None:
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    results = []
    for backend in ({"backend": "inductor"}, {"backend": "nm_sparse", "options": DENSE}):
        torch._dynamo.reset()
        leaf = x.detach().requires_grad_()
        loss = torch.compile(lambda x: loss_of(model(x)), **backend)(leaf)
        grads = torch.autograd.grad(loss, [leaf, *model.parameters()], allow_unused=True)
        results.append([loss.detach(), *(g for g in grads if g is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
