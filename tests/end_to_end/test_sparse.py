"""``execution = "sparse"`` computes what ``"simulate"`` computes, bit for bit, on the CPU.

The same passes run on a GPU; there the library multiplies instead of the oracle operators.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.compressed import hardware
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning
from nmcompile.inductor import hooks

pytestmark = pytest.mark.slow

ACTIVATION = Rule(prune="activation", role="fprop", format="2:4")
GRADIENT = Rule(prune="gradient", role=["dgrad", "wgrad"], format="2:4")
EXACT = Rule(prune="activation", role="fprop", format="2:4", backward="exact")
POLICIES = {
    "full": [ACTIVATION, GRADIENT],
    "exact": [EXACT, GRADIENT],
    "exact-weights": [
        Rule(prune="weight", role="fprop", format="2:4", method="transposable", backward="exact"),
        GRADIENT,
    ],
    "1:2": [
        Rule(prune="activation", role="fprop", format="1:2"),
        Rule(prune="gradient", format="1:2"),
    ],
    "weights": [Rule(prune="weight", format="2:4", method="transposable"), GRADIENT],
    "other methods": [
        Rule(prune="gradient", role="dgrad", format="2:4", method="uniform"),
        Rule(prune="activation", role="wgrad", format="2:4", method="approx-mvue"),
    ],
}


class Shared(nn.Module):
    """Two products of one activation, a bias, odd sizes, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(36, 20), nn.Linear(36, 20, bias=False)
        self.out = nn.Linear(20, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(nn.functional.gelu(self.a(x)) * self.b(x))


def results(
    model: nn.Module, x: torch.Tensor, policy: Policy, **options: object
) -> list[torch.Tensor]:
    """Output and every gradient of one step, the same random numbers each time."""
    torch._dynamo.reset()
    torch.manual_seed(3)
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    compiled: Callable[..., torch.Tensor] = torch.compile(
        model, backend="nm_sparse", options={"policy": policy}, **options
    )
    y = compiled(x)
    y.square().mean().backward()
    assert x.grad is not None
    return [y, x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def check(model: nn.Module, x: torch.Tensor, rules: list[Rule], **options: object) -> None:
    simulate, sparse = (
        results(model, x, Policy(rules=rules, execution=how), **options)
        for how in ("simulate", "sparse")
    )
    for expected, actual in zip(simulate, sparse, strict=True):
        assert actual.stride() == expected.stride()
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", POLICIES)
def test_linear_layers(name: str) -> None:
    check(Shared(), torch.randn(3, 7, 36), POLICIES[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_types(dtype: torch.dtype) -> None:
    # Without additions: Inductor fuses one into a dense product, which is then rounded only once.
    model = nn.Sequential(nn.Linear(36, 20, bias=False), nn.GELU(), nn.Linear(20, 36, bias=False))
    check(model.to(dtype), torch.randn(8, 36).to(dtype), POLICIES["exact"])


def test_pointwise_convolutions_run_sparse_and_others_say_why_not() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
    ).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last)
    policy = Policy(rules=POLICIES["full"], execution="sparse", fallback="simulate")
    report = nmcompile.explain(model, x.clone().requires_grad_(), policy=policy)
    how = {(s.module, str(s.role)): s for s in report.sites}
    assert {s.execution for s in report.sites if s.module in "03"} == {"sparse"}
    assert how["2", "fprop"].execution == "simulate"
    assert "only 1x1 convolutions of stride 1" in how["2", "fprop"].reason
    simulate = results(model, x, Policy(rules=POLICIES["full"], execution="simulate"))
    sparse = results(model, x, policy)
    for expected, actual in zip(simulate, sparse, strict=True):
        # A convolution and a matrix product sum in different orders.
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_sparse_gradients_of_a_convolution_whose_exact_forward_is_simulated() -> None:
    model = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1))
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last)
    policy = Policy(rules=POLICIES["exact"], execution="sparse", fallback="simulate")
    simulate = results(model, x, Policy(rules=POLICIES["exact"], execution="simulate"))
    for expected, actual in zip(simulate, results(model, x, policy), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_is_not_channels_last_says_so() -> None:
    policy = Policy(rules=[ACTIVATION], execution="sparse")
    with pytest.warns(NMWarning, match="nothing is pruned"):
        report = nmcompile.explain(nn.Conv2d(16, 8, 1), torch.randn(2, 16, 6, 5), policy=policy)
    assert report.sites[0].execution == "dense"
    assert "channels_last" in report.sites[0].reason


def test_dynamic_sizes_keep_one_graph() -> None:
    torch.manual_seed(0)
    model = Shared()
    policy = Policy(rules=POLICIES["full"], execution="sparse")
    plain = torch.compile(
        model, backend="nm_sparse", options={"policy": policy}, dynamic=True, fullgraph=True
    )
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for tokens in (8, 13, 21):
        plain(torch.randn(tokens, 36)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 1
    check(model, torch.randn(13, 36), POLICIES["full"], dynamic=True)


def test_under_autocast_and_with_several_steps() -> None:
    model = nn.Sequential(nn.Linear(36, 20, bias=False), nn.Tanh(), nn.Linear(20, 36, bias=False))
    losses = {}
    for how in ("simulate", "sparse"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        trained = copy.deepcopy(model)
        policy = Policy(rules=POLICIES["exact"], execution=how)
        step = torch.compile(trained, backend="nm_sparse", options={"policy": policy})
        optimizer = torch.optim.SGD(trained.parameters(), 0.1)
        losses[how] = []
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                loss = step(torch.ones(8, 36)).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[how].append(float(loss))
    assert losses["sparse"] == losses["simulate"]
    assert losses["sparse"][-1] < losses["sparse"][0]


@pytest.mark.parametrize("name", POLICIES)
def test_where_the_library_packs_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were a GPU whose layout nobody knows: prune, pack, and an exact backward."""
    reads = hardware.Reads(Layout.CUSPARSELT)
    monkeypatch.setattr(hardware, "layout_on", lambda device: reads)
    monkeypatch.setattr(hooks, "fingerprint", lambda: "another machine")  # and another cache
    check(Shared(), torch.randn(3, 7, 36), POLICIES[name])
    layouts = {s.layout for s in nmcompile.last_report().sites if s.execution == "sparse"}
    assert layouts == {Layout.CUSPARSELT}
    check(Shared(), torch.randn(13, 36), POLICIES[name], dynamic=True)
