"""Training in float8: each product reads what is N:M and then cast, and the report says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import nmcompile
from benchmarks.zoo.float8 import (
    RECIPES,
    Float8Linear,
    Linear8,
    Scaled,
    multiply,
    to_float8,
)
from nmcompile import Policy, Report
from nmcompile.gemm import OperandKind, Role
from nmcompile.ops.schemas import Prune
from nmcompile.reason import Code
from tests.passes.plans import plan_of, ran

WAYS = [(recipe, emulate) for recipe in RECIPES for emulate in (False, True)]


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    """X [2, 8, 32], W [48, 32] and the gradient of Y [2, 8, 48]."""
    x, w, dy = torch.randn(2, 8, 32), torch.randn(48, 32), torch.randn(2, 8, 48)
    return x.bfloat16().requires_grad_(), w.bfloat16().requires_grad_(), dy.bfloat16()


class Masks(fx.Interpreter):
    """Runs a graph and keeps what its masks leave."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule({}, graph))
        self.kept: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is Prune.operator:
            self.kept.append(result)
        return result


def step(recipe: str, emulate: bool, policy: Policy | str = "full") -> tuple[Masks, Any]:
    """The rewritten graph of one step, a function of X, W and the gradient of Y, and its plan."""

    def f(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        y = Linear8.apply(x, w, recipe, emulate)
        loss = (y * dy).sum()
        return y, *torch.autograd.grad(loss, (x, w))

    plan = ran(plan_of(f, *tensors(), policy=policy))
    return Masks(plan.graph), plan


def is_two_of_four(rows: Tensor) -> bool:
    return bool(((rows.unflatten(-1, (-1, 4)) != 0).sum(-1) <= 2).all())


@pytest.mark.parametrize(("recipe", "emulate"), WAYS)
def test_every_product_is_that_of_its_own_pruned_operand(recipe: str, emulate: bool) -> None:
    """As if the layer had been called with the pruned X, and each gradient with a pruned dY."""
    masks, plan = step(recipe, emulate)
    assert [d.gemm.role for d in plan.decisions] == [Role.FPROP, Role.DGRAD, Role.WGRAD]
    assert all(d.gemm.guess is None for d in plan.decisions)
    x, w, dy = tensors()
    y, dx, dw = masks.run(x, w, dy)
    assert all(is_two_of_four(kept) for kept in masks.kept)
    by_rows, by_columns = masks.kept[1].view_as(dy), masks.kept[2].t().reshape(dy.shape)
    assert not torch.equal(by_rows, by_columns)

    def layer(value: Tensor) -> Tensor:
        result: Tensor = Linear8.apply(value, w, recipe, emulate)
        return result

    assert torch.equal(y, layer(masks.kept[0].view_as(x)))
    assert torch.equal(dx, torch.autograd.grad(layer(x), x, by_rows)[0])
    assert torch.equal(dw, torch.autograd.grad(layer(x), w, by_columns)[0])


def test_masks_by_magnitude_commute_with_the_cast() -> None:
    """But for values that the cast makes equal."""
    masks, _ = step("tensorwise", False)
    x, w, dy = tensors()
    masks.run(x, w, dy)
    before, scale = to_float8(masks.kept[0])
    bits, same = to_float8(x.detach().view_as(before))
    assert torch.equal(scale, same)
    blocks = bits.float().unflatten(-1, (-1, 4))
    order = blocks.abs().sort(-1, descending=True).values
    distinct = order[..., 1] != order[..., 2]
    after = nmcompile.functional.prune(bits.float(), "2:4")
    assert distinct.float().mean() > 0.8
    assert torch.equal(before.float().view_as(blocks)[distinct], after.view_as(blocks)[distinct])


def test_raised_gradients_do_not_saturate_and_are_unbiased_before_the_cast() -> None:
    masks, _ = step("tensorwise", False)
    x, w, dy = tensors()
    drawn = []
    for _ in range(400):
        masks.kept.clear()
        masks.run(x, w, dy)
        drawn.append(masks.kept[1].float())
    kept = torch.stack(drawn)
    assert kept.abs().max() > dy.abs().max()
    error = (kept.mean(0) - dy.float().view_as(kept[0])).abs()
    magnitude = dy.float().abs().view(-1, 4)
    half = magnitude.sum(-1, keepdim=True) / 2  # no kept value is larger than it and its own
    sigma = (magnitude * half).sqrt().view_as(error) / 400**0.5
    # bfloat16 rounds each raised value to within 2^-9 of it.
    assert (error <= 5 * sigma + 2**-8 * kept.abs().amax(0)).all()


def explained(recipe: str = "tensorwise", emulate: bool = False, **options: Any) -> Report:
    """Of two layers in training."""
    how = recipe, emulate
    model = nn.Sequential(Float8Linear(32, 64, *how), nn.GELU(), Float8Linear(64, 48, *how))
    x = torch.randn(2, 8, 32, dtype=torch.bfloat16, requires_grad=True)
    return nmcompile.explain(model, x, **options)


@pytest.mark.parametrize(("recipe", "emulate"), WAYS)
@pytest.mark.parametrize("policy", ["full", "full-exact", "weights"])
def test_every_role_of_every_layer_is_pruned(recipe: str, emulate: bool, policy: str) -> None:
    if policy != "full" and (recipe, emulate) not in WAYS[::3]:
        pytest.skip("two ways are enough")
    report = explained(recipe, emulate, policy=policy)
    assert [s.role for s in report.sites].count(Role.WGRAD) == 2
    assert report.totals.pruned_sites == len(report.sites) == 6
    assert not report.graphs[0].skipped
    assert all(s.guess is None for s in report.sites)
    kinds = {"weights": {OperandKind.WEIGHT, OperandKind.GRADIENT}}
    usual = {OperandKind.ACTIVATION, OperandKind.GRADIENT}
    assert {s.pruned for s in report.sites} == kinds.get(policy, usual)
    if policy == "full-exact":
        notes = [r.code for s in report.sites for r in s.reasons]
        assert notes.count(Code.MASKED_RESULT) == notes.count(Code.READS_PRUNED) == 2


def test_padded_products_belong_together() -> None:
    """What each of the three reduces is padded to a multiple of 16, as torchao does on request."""

    def f(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        def padded(a: Scaled, b: Scaled) -> Tensor:
            missing = -a[0].shape[1] % 16
            left = nn.functional.pad(a[0], (0, missing)), a[1]
            right = nn.functional.pad(b[0], (0, 0, 0, missing)), b[1]
            return multiply(left, right, False)

        y = padded(to_float8(x), to_float8(w.t()))
        gradient, scale = to_float8((dy * torch.ones_like(y.sum())).bfloat16())
        dx = padded((gradient, scale), to_float8(w))
        return y, dx, padded((gradient.t(), scale), to_float8(x))

    x, w, dy = torch.randn(24, 40), torch.randn(32, 40), torch.randn(24, 32)
    args = (x.bfloat16(), w.bfloat16(), dy.bfloat16())
    plan = ran(plan_of(f, *args, policy="full-exact"))
    assert [d.gemm.role for d in plan.decisions] == [Role.FPROP, Role.DGRAD, Role.WGRAD]
    forward = plan.decisions[0].gemm.node
    assert [d.gemm.forward for d in plan.decisions] == [None, forward, forward]
    assert [plan.notes[site][0].code for site in (1, 2)] == [Code.MASKED_RESULT, Code.READS_PRUNED]
    masks = Masks(plan.graph)
    masks.run(*args)
    assert [tuple(kept.shape) for kept in masks.kept] == [(24, 40), (24, 32), (32, 24)]


def test_dense_leaves_the_graph_alone() -> None:
    (graph,) = explained(policy="dense").graphs
    assert graph.before == graph.after


def test_sparse_products_in_float8_are_not_called_yet() -> None:
    for options in ({"policy": Policy(extends="full", execution="sparse")}, {"target": "h100"}):
        with pytest.warns(nmcompile.NMWarning, match="nothing is pruned"):
            report = explained(**options)
        reasons = [r for site in report.sites for r in site.reasons]
        assert not report.totals.pruned_sites
        assert [r.text for r in reasons if r.code is Code.EIGHT_BIT] == [
            "fp8 is simulated so far: the GPU's own sparse product in fp8 is not called yet"
        ] * 6


def test_a_scale_of_earlier_steps_is_noted_where_values_are_raised() -> None:
    def f(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        q, p = (x * scale).to(torch.float8_e4m3fn), to_float8(w.t())
        p8 = p[0].t().contiguous().t()
        return torch._scaled_mm(q, p8, 1 / scale, 1 / p[1], out_dtype=torch.bfloat16)

    x, w, _ = (t.detach() for t in tensors())
    for method, noted in (("mse", False), ("mvue", True)):
        rule = {"prune": "activation", "role": "fprop", "format": "2:4", "method": method}
        plan = ran(plan_of(f, x[0], w, torch.ones(()), policy=Policy.resolve({"rule": [rule]})))
        assert [r.code for r in plan.notes[0]] == [Code.FIXED_SCALE] * noted


@pytest.mark.parametrize("pruned", ["activation", "weight"])
def test_an_operand_that_arrives_in_8_bits_is_dense_with_the_reason(pruned: str) -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        one = torch.ones(())
        return torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16)

    bits = [t.detach().to(torch.float8_e4m3fn).view(-1, 32) for t in tensors()[:2]]
    rule = {"prune": pruned, "role": "fprop", "format": "2:4", "method": "mse"}
    (d,) = ran(plan_of(f, *bits, policy=Policy.resolve({"rule": [rule]}))).decisions
    (reason,) = d.execution.reasons
    assert (d.execution.how, reason.code) == ("dense", Code.NO_CAST)
    assert reason.text == (
        f"no mask fits this {pruned}, it comes into this graph in 8 bits: a mask is taken in high "
        "precision, before scale and cast"
    )


@pytest.mark.slow
def test_compiled() -> None:
    """Dense is Inductor's own, bit for bit; pruned it is the layer of the pruned activation."""
    x, _, dy = tensors()
    model = Float8Linear(32, 48, "rowwise")
    leaves = (x, model.weight)
    results = {}
    for backend, options in (("inductor", {}), ("nm_sparse", {"policy": "dense"})):
        torch._dynamo.reset()
        y = torch.compile(model, backend=backend, options=options)(x)
        results[backend] = (y.detach(), *torch.autograd.grad(y, leaves, dy))
    assert all(torch.equal(a, b) for a, b in zip(*results.values(), strict=True))

    torch._dynamo.reset()
    y = torch.compile(model, backend="nm_sparse")(x)
    expected = model(nmcompile.functional.prune(x.detach(), "2:4"))
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=2**-7 * float(expected.abs().max()))
    assert all(g.isfinite().all() for g in torch.autograd.grad(y, leaves, dy))
    assert nmcompile.last_report().totals.pruned_sites == 3
