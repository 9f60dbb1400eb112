"""What is shown of pruned products, and what of it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from nmcompile import _torch
from nmcompile.ops.observe import Observe, ObservedSite, site_of
from nmcompile.passes import pipeline
from nmcompile.passes.observe import MARK, mark_sites, observe
from nmcompile.passes.plan import Kernels, Plan, Sparse
from nmcompile.passes.run import Pass, run
from tests.passes.plans import SPARSE, plan_of

aten = torch.ops.aten


def loss_of(f: Callable[..., Tensor]) -> Callable[..., Any]:
    def step(x: Tensor, w: Tensor) -> Any:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        return torch.autograd.grad(f(x, w).square().sum(), (x, w))

    return step


def linear(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


X, W = torch.randn(8, 16), torch.randn(16, 12)


def observed(
    f: Callable[..., Any], *args: Tensor, policy: Any = "full", passes: Any = (), observer: Any = 5
) -> Plan:
    plan = plan_of(f, *args, policy=policy)
    run(pipeline.JOINT, plan, "joint graph")
    mark_sites(plan)
    run([*passes, Pass(observe)], Kernels(plan.graph, observer=observer), "graph")
    return plan


def calls(plan: Plan) -> dict[str, tuple[ObservedSite, Observe]]:
    found = [Observe.of(n) for n in plan.graph.nodes if n.target is Observe.operator]
    sites = [site_of(call.site) for call in found]
    return {s.role: (s, c) for s, c in zip(sites, found, strict=True)}


def test_each_pruned_product_is_shown_at_the_end() -> None:
    plan = observed(loss_of(linear), X, W)
    nodes = [n for n in plan.graph.nodes if n.op == "call_function"]
    first = nodes.index(next(n for n in nodes if n.target is Observe.operator)) - 1
    added = [n.target for n in nodes[first:]]
    views = {aten.permute.default, aten.t.default}
    assert [t for t in added if t not in views] == 3 * [aten.full.default, Observe.operator]
    found = calls(plan)
    assert found.keys() == {"fprop", "dgrad", "wgrad"}
    assert {site.prune for site, _ in found.values()} == {"activation", "gradient"}
    for role, (site, call) in found.items():
        (product,) = [n for n in nodes if call.pruned in n.args and n.target is aten.mm.default]
        assert call.meter == 5
        assert call.dense.meta["val"].shape == call.pruned.meta["val"].shape
        assert bool(site.target) == (role == "wgrad")
        assert call.result is (product if role == "wgrad" else None)
        assert call.beside == [n for n in product.args if n is not call.pruned] * (role == "wgrad")


def test_nothing_is_shown_to_nobody() -> None:
    plan = observed(loss_of(linear), X, W, observer=None)
    assert not calls(plan)
    assert any(MARK in n.meta for n in plan.graph.nodes)


def test_dense_products_are_not_shown() -> None:
    assert calls(observed(loss_of(linear), X, W, policy="gradients")).keys() == {"dgrad", "wgrad"}
    assert not calls(observed(loss_of(linear), X, W, policy="dense"))


def test_products_that_run_sparse_are_not_shown() -> None:
    def sixteen_bits(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).float()

    x, w = torch.randn(64, 64, dtype=torch.bfloat16), torch.randn(64, 64, dtype=torch.bfloat16)
    plan = observed(loss_of(sixteen_bits), x, w, policy=SPARSE)
    assert any(isinstance(result, Sparse) for result in plan.results.values())
    assert not calls(plan)


def test_what_several_masks_read_at_once() -> None:
    passes = [p for p in pipeline.POST_GRAD if p.name in ("share_pruned", "free_layout")]
    plain = calls(observed(loss_of(linear), X, W))
    merged = calls(observed(loss_of(linear), X, W, passes=passes))
    assert merged.keys() == plain.keys()
    for role, (site, call) in merged.items():
        assert site == plain[role][0]
        assert call.dense.meta["val"].shape == plain[role][1].dense.meta["val"].shape


def test_a_product_that_an_addition_reads_is_computed_again() -> None:
    def twice(x: Tensor, w: Tensor) -> Tensor:
        return torch.relu(x @ w) @ w

    plan = observed(loss_of(twice), torch.randn(8, 16), torch.randn(16, 16))
    found = [Observe.of(n) for n in Observe.nodes(plan.graph)]
    gradients = [call for call in found if site_of(call.site).target]
    assert [call.result for call in gradients] == [None, None]
    assert all(len(call.beside) == 1 for call in gradients)


def test_products_of_one_module_are_numbered() -> None:
    def twice(x: Tensor, w: Tensor) -> Tensor:
        return torch.relu(x @ w) @ w

    plan = observed(loss_of(twice), torch.randn(8, 16), torch.randn(16, 16), policy="gradients")
    found = [site_of(Observe.of(n).site) for n in Observe.nodes(plan.graph)]
    assert sorted((s.role, s.product) for s in found) == [
        (role, number) for role in ("dgrad", "wgrad") for number in (0, 1)
    ]


def test_a_forward_that_a_checkpoint_repeats_is_shown_once() -> None:
    graphs: list[fx.Graph] = []

    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            again = checkpoint(self.block, x, use_reentrant=False)
            assert isinstance(again, Tensor)
            return again

        def block(self, x: Tensor) -> Tensor:
            return torch.relu(super().forward(x)).square()

    class Keep(_torch.CustomGraphPass):  # type: ignore[misc,name-defined]
        def __call__(self, graph: fx.Graph) -> None:
            graphs.append(graph)

        def uuid(self) -> Any:
            return None

    options = {"policy": "full", "nm.meter": 5, "post_grad_custom_post_pass": Keep()}
    run = torch.compile(Layer(16, 8), backend="nm_sparse", options=options)
    run(X.clone().requires_grad_()).sum().backward()
    products = [sum(n.target is aten.addmm.default for n in g.nodes) for g in graphs]
    assert products == [1, 1, 1, 1]
    shown = [[site_of(Observe.of(n).site).role for n in Observe.nodes(g)] for g in graphs]
    assert [sorted(roles) for roles in shown if roles] == [["fprop"], ["dgrad", "wgrad"]]
