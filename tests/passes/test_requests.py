"""What is decided together is what one kernel compresses in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.inductor import hooks
from nmcompile.ops.schemas import Compress
from nmcompile.passes import assign
from nmcompile.passes.plan import Plan, Sparse

#: Everything runs sparse that can.
ALWAYS: dict[str, Any] = {"execution": "sparse", "margin": 0.001}
MVUE = Rule(prune="gradient", role=["dgrad", "wgrad"], format="2:4")
POLICIES = {
    "full": Policy(extends="full", **ALWAYS),
    "exact": Policy(extends="full-exact", **ALWAYS),
    "weights": Policy(extends="weights", **ALWAYS),
    "activations": Policy(
        rules=[
            Rule(prune="activation", role="fprop", format="2:4"),
            Rule(prune="activation", role="wgrad", format="2:4", method="mse"),
        ],
        **ALWAYS,
    ),
    "activations exact": Policy(
        rules=[
            Rule(prune="activation", role="fprop", format="2:4", backward="exact"),
            Rule(prune="activation", role="wgrad", format="2:4", method="mse"),
        ],
        **ALWAYS,
    ),
    "mse gradients": Policy(extends="mse-gradients", **ALWAYS),
    "uniform": Policy(
        rules=[Rule(prune="gradient", format="2:4", method="uniform"), MVUE], **ALWAYS
    ),
}


class Attention(nn.Module):
    """Three products of one activation, a bias, one of a reshaped view, a product of both."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 32, bias=False)
        self.v, self.o = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.q(x.reshape(-1, 64)).view(x.shape)
        return self.o(torch.tanh(self.v(x)) * gate) + self.k(x).repeat(1, 1, 2)


class Images(nn.Module):
    """1x1 convolutions, two of them of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 32, 1, bias=False)
        self.c = nn.Conv2d(32, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.relu()
        return self.c(self.a(y).sigmoid() * self.b(y))


def attention() -> tuple[nn.Module, torch.Tensor]:
    return Attention().bfloat16(), torch.randn(2, 64, 64).bfloat16()


def images() -> tuple[nn.Module, torch.Tensor]:
    x = torch.randn(2, 16, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    return Images().bfloat16().to(memory_format=torch.channels_last), x


def planned(monkeypatch: pytest.MonkeyPatch, model: Any, policy: Policy) -> Plan:
    """The state of the joint graph after its passes."""
    plans: list[Plan] = []

    def keep(*arguments: Any, **keywords: Any) -> Plan:
        plans.append(Plan(*arguments, **keywords))
        return plans[-1]

    monkeypatch.setattr(hooks, "Plan", keep)
    module, x = model()
    nmcompile.explain(module, x.requires_grad_(), policy=policy, target="h100")
    (plan,) = plans
    return plan


@pytest.mark.parametrize("model", [attention, images])
@pytest.mark.parametrize("name", POLICIES)
def test_a_unit_is_what_one_kernel_compresses(
    monkeypatch: pytest.MonkeyPatch, name: str, model: Any
) -> None:
    plan = planned(monkeypatch, model, POLICIES[name])
    merged: dict[Any, set[int]] = {}
    for site, result in plan.results.items():
        if isinstance(result, Sparse):
            packed = result.product.args[0]  # share_compressed has replaced what was inserted
            (kernel,) = packed.all_input_nodes
            assert kernel.target is Compress.operator
            merged.setdefault(kernel, set()).add(site)
    assert len(merged) > 1
    assert sorted(map(sorted, merged.values())) == sorted(sorted(u.sparse) for u in plan.units)


@pytest.mark.parametrize("name", ["full", "weights"])
def test_what_is_read_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The dimensions and streams of each request are those of the operator."""
    asked = []
    original = assign.choose

    def choose(requests: Any, *rest: Any) -> Any:
        asked.extend(requests)
        return original(requests, *rest)

    monkeypatch.setattr(assign, "choose", choose)
    plan = planned(monkeypatch, attention, POLICIES[name])
    for r in asked:
        result = plan.results[r.site]
        assert isinstance(result, Sparse)
        packed = result.product.args[0]
        (kernel,), index = packed.all_input_nodes, packed.args[1]
        call = Compress.of(kernel)
        assert (call.dims[index], call.streams[index]) == (r.along, r.stream)


class Readers(nn.Module):
    """A bias whose result goes into an elementwise reader, a product, or out."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.first, self.second, self.reader = nn.Linear(64, 64), nn.Linear(64, 64), reader

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.reader == "gelu":
            y = nn.functional.gelu(y.view(2, -1, 64)).view(-1, 64)
        if self.reader == "norm":
            y = nn.functional.layer_norm(y, (64,))
        return y if self.reader == "out" else self.second(y)


@pytest.mark.parametrize(
    ("reader", "kind", "terms"),
    [
        ("gelu", "activation", 0),
        ("norm", "activation", 0),
        ("product", "activation", 1),
        ("out", "activation", 1),
        ("out", "weight", 0),  # the library adds it to the rows of its operand
    ],
)
def test_a_bias_costs_a_pass_where_nothing_takes_it_in(reader: str, kind: str, terms: int) -> None:
    rule = Rule(module="first", prune=kind, role="fprop", format="2:4", method="mse")
    x = torch.randn(128, 64, dtype=torch.bfloat16)
    policy = Policy(rules=[rule], **ALWAYS)
    report = nmcompile.explain(Readers(reader).bfloat16(), x, policy=policy, target="h100")
    (row,) = report.graphs[0].units
    assert ("bias" in row.terms_us) == bool(terms)


def test_an_exact_backward_is_charged_for_what_it_unpacks() -> None:
    def terms(backward: str, training: bool) -> float:
        rule = Rule(prune="activation", role="fprop", format="2:4", backward=backward)
        x = torch.randn(128, 64, dtype=torch.bfloat16, requires_grad=training)
        layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).requires_grad_(training)
        policy = Policy(rules=[rule], **ALWAYS)
        report = nmcompile.explain(layer, x, policy=policy, target="h100")
        return report.graphs[0].units[0].terms_us.get("exact", 0.0)

    assert terms("exact", True) > 0
    assert terms("straight-through", True) == terms("exact", False) == 0


def test_products_on_a_cpu_are_no_unit() -> None:
    layer, x = nn.Linear(64, 64), torch.randn(8, 64)
    report = nmcompile.explain(layer, x, policy=Policy(extends="full", execution="sparse"))
    assert {s.execution for s in report.sites} == {"sparse"}
    assert report.graphs[0].units == ()
