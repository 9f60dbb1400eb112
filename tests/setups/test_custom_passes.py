"""A user's own Inductor passes run beside ours, at both hooks, and the caches stay on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch._inductor.custom_graph_pass import CustomGraphPass

from tests.setups.steps import compiled, density, identity

aten = torch.ops.aten
HOOKS = ("joint_custom_pre_pass", "post_grad_custom_pre_pass")


class Replace(CustomGraphPass):
    """Replaces one pointwise operator by another, so that the result tells that it ran."""

    def __init__(self, old: Any, new: Any) -> None:
        self.old, self.new, self.graphs = old, new, 0

    def __call__(self, graph: fx.Graph) -> None:
        self.graphs += 1
        for node in graph.find_nodes(op="call_function", target=self.old):
            node.target = self.new

    def uuid(self) -> str:
        return f"{self.old} {self.new}"


class Model(nn.Module):
    """The identity layer shows the mask, what follows it shows the user's passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, torch.sinh(torch.sin(x))


@pytest.fixture(autouse=True)
def count_from_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counters.clear()


def passes() -> dict[str, Replace]:
    return {
        HOOKS[0]: Replace(aten.sin.default, aten.cos.default),
        HOOKS[1]: Replace(aten.sinh.default, aten.cosh.default),
    }


def run(x: Tensor, own: dict[str, Any], by: str) -> Tensor:
    """One inference; returns what follows the layer, after a look at the layer's mask."""
    torch._dynamo.reset()
    with torch.no_grad(), torch._inductor.config.patch(own if by == "config" else {}):
        y, rest = compiled(Model(), options=own if by == "option" else {})(x)
    assert density(y) == 0.5
    return rest


@pytest.mark.slow
@pytest.mark.parametrize("by", ["option", "config"])
def test_both_passes_run_once_and_results_are_cached(by: str) -> None:
    x, own = torch.randn(8, 16), passes()
    expected = torch.cosh(torch.cos(x))
    for hits in (0, 1):
        torch.testing.assert_close(run(x, own, by), expected)
        assert counters["aot_autograd"]["autograd_cache_hit"] == hits
        assert [p.graphs for p in own.values()] == [1, 1]
    # Another pass at one hook, the same at the other: the cached code is not for them.
    for hook, replaced in (
        (HOOKS[0], torch.cosh(torch.tan(x))),
        (HOOKS[1], torch.asinh(torch.cos(x))),
    ):
        other = passes()
        other[hook].new = aten.tan.default if hook == HOOKS[0] else aten.asinh.default
        torch.testing.assert_close(run(x, other, by), replaced)
        assert other[hook].graphs == 1
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    torch.testing.assert_close(run(x, {}, by), torch.sinh(torch.sin(x)))


@pytest.mark.slow
def test_an_option_wins_over_the_configuration() -> None:
    x = torch.randn(8, 16)
    with torch._inductor.config.patch({HOOKS[0]: Replace(aten.sin.default, aten.tan.default)}):
        found = run(x, {HOOKS[0]: passes()[HOOKS[0]]}, "option")
    torch.testing.assert_close(found, torch.sinh(torch.cos(x)))


@pytest.mark.slow
def test_passes_that_are_plain_functions() -> None:
    """Inductor does not cache what it cannot identify; so it is with ours beside them."""
    x, seen = torch.randn(8, 16), []

    def look(graph: fx.Graph) -> None:
        seen.append(len(graph.find_nodes(op="call_function", target=torch.ops.nm.prune.default)))

    for _ in range(2):
        run(x, dict.fromkeys(HOOKS, look), "config")
    assert seen == [0, 1] * 2  # the user's joint pass sees the graph before ours, once a time
    assert counters["aot_autograd"]["autograd_cache_hit"] == 0


@pytest.mark.slow
def test_they_run_on_forward_and_backward() -> None:
    x, own = torch.randn(8, 16, requires_grad=True), passes()
    y, rest = compiled(Model(), options=own)(x)
    (y.sum() + rest.sum()).backward()
    assert [p.graphs for p in own.values()] == [1, 2]
    torch.testing.assert_close(rest, torch.cosh(torch.cos(x)))
