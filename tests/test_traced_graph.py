"""``nmcompile.rewrite``: the passes on a graph that the user traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from nmcompile import ArgumentError, NMError
from nmcompile.reason import Code
from tests.graph.training_step import traced


def test_policy_dense_computes_what_the_graph_computed() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    gm, params, _ = traced(model, torch.randn(12, 16))
    x = torch.randn(12, 16)
    (a, b), (c, d) = nmcompile.rewrite(gm, "dense")(params, x), gm(params, x)
    assert torch.equal(a, c)
    assert all(torch.equal(p, q) for p, q in zip(b, d, strict=True))


def test_a_pattern_that_names_nothing() -> None:
    gm, *_ = traced(nn.Linear(16, 8), torch.randn(4, 16))
    with pytest.raises(NMError, match=r"no placeholder 'parms_\*': did you mean 'params_"):
        nmcompile.rewrite(gm, "full", weights="parms_*")


@pytest.mark.parametrize("what", [nn.Linear(4, 4), lambda x: x, None])
def test_what_is_no_graph(what: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"takes the graph that make_fx\(function\)\(\*inputs\)"
    ):
        nmcompile.rewrite(what)


@pytest.mark.parametrize("weights", [3, [3], {"w": 1}])
def test_weights_that_are_no_names(weights: Any) -> None:
    gm, *_ = traced(nn.Linear(16, 8), torch.randn(4, 16))
    with pytest.raises(ArgumentError, match="write the name of a placeholder, or a list of them"):
        nmcompile.rewrite(gm, weights=weights)


def test_a_graph_without_values() -> None:
    gm = torch.fx.symbolic_trace(nn.Linear(4, 4))
    with pytest.raises(NMError, match=r"no meta\['val'\]: trace with .*make_fx"):
        nmcompile.rewrite(gm, "full")


def forward() -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Two products without a gradient."""
    args = (torch.randn(4, 8), torch.randn(8, 6), torch.randn(6, 8))
    return make_fx(lambda x, w_in, w_out: x @ w_in @ w_out)(*args), args


@pytest.mark.parametrize(
    ("weights", "pruned"),
    [
        ("w_*", 2),
        (["w_in*"], 1),
        (["w_in*", "w_out*"], 2),
        (None, 0),  # nothing tells which of its inputs are parameters
    ],
)
def test_weights_by_name(weights: Any, pruned: int) -> None:
    gm, args = forward()
    result = nmcompile.rewrite(gm, "activations", weights=weights)
    report = result.meta["nm_report"]
    assert report.totals.pruned_sites == pruned
    assert [str(s.op) for s in report.sites].count("linear") == pruned
    assert torch.equal(result(*args), gm(*args)) == (pruned == 0)


def test_what_the_module_holds_is_a_weight() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    gm = make_fx(Held())(torch.randn(4, 8))
    (site,) = nmcompile.rewrite(gm, "activations").meta["nm_report"].sites
    assert [str(k) for k in site.operands] == ["activation", "weight"]


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_the_differentiated_operand_is_the_weight_also_where_the_input_is(
    needs_gradient: bool,
) -> None:
    def step(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((x @ w).sum(), (x, w) if needs_gradient else (w,))

    x, w = torch.randn(4, 8), torch.randn(8, 6, requires_grad=True)
    gm = make_fx(step)(x.requires_grad_(needs_gradient), w)
    sites = nmcompile.rewrite(gm, "full").meta["nm_report"].sites
    found = {str(s.role): [str(k) for k in s.operands] for s in sites}
    assert found["fprop"] == ["activation", "weight"]
    assert sorted(found) == ["dgrad", "fprop", "wgrad"][not needs_gradient :]


def test_the_given_graph_stays_as_it_is() -> None:
    gm, _ = forward()
    before = gm.code
    result = nmcompile.rewrite(gm, "full", weights="w_*")
    assert gm.code == before != result.code
    assert "nm_report" not in gm.meta


def test_what_a_branch_multiplies_is_listed_and_stays_dense() -> None:
    def choose(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        yes, no = (lambda x, w: x @ w), (lambda x, w: x - w)
        chosen: torch.Tensor = torch.cond(x.sum() > 0, yes, no, (x, w))
        return chosen

    traced = make_fx(choose, tracing_mode="fake")(torch.randn(8, 8), torch.randn(8, 8))
    with pytest.warns(nmcompile.NMWarning, match="inside of a higher-order operator"):
        report = nmcompile.rewrite(traced, "full").meta["nm_report"]
    (site,) = report.sites
    assert (site.execution, site.has(Code.IN_SUBGRAPH)) == ("dense", True)
