"""Which masks are kept, how the graph reads them, and where rules contradict each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile import NMError, Policy, PolicyError, Rule
from nmcompile.gemm import OperandKind, Role
from nmcompile.graph.aten import argument
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.passes.kept_masks import all_kept
from nmcompile.passes.pipeline import DECIDE
from nmcompile.passes.plan import Plan
from nmcompile.reason import Code
from nmcompile.weight_masks.stored_mask import StoredMask
from tests.passes.plans import multilayer, plan_of, pointwise_convolution, ran
from tests.passes.rewritten import rewritten

aten, nm = torch.ops.aten, torch.ops.nm
TILES: dict[str, Any] = {"prune": "weight", "format": "2:4", "method": "transposable"}
TRANSPOSABLE = StoredMask(NMFormat(2, 4), Method.TRANSPOSABLE, (0, 1))
KEPT = Policy(refresh=40, decay=6e-6, rules=[Rule(**TILES)])
SPARSE = KEPT.model_copy(update={"execution": "sparse"})


def layers(policy: Policy) -> Plan:
    """Two layers whose inputs are known, and whose masks are inputs."""

    def step(x: Tensor, w1: Tensor, w2: Tensor, mask1: Tensor, mask2: Tensor) -> Any:
        return multilayer(x, w1, w2)

    leaves = [torch.randn(*shape).requires_grad_() for shape in ((16, 32), (32, 32), (16, 32))]
    plan = plan_of(step, *leaves, *(torch.ones_like(w, dtype=torch.uint8) for w in leaves[1:]))
    return given_masks(plan, policy)


def given_masks(plan: Plan, policy: Policy) -> Plan:
    inputs = {n.name: n for n in plan.graph.find_nodes(op="placeholder")}
    weights = [n for name, n in inputs.items() if name.startswith("w")]
    masks = [n for name, n in inputs.items() if name.startswith("mask")]
    plan.policy, plan.whole = policy, {node: number for number, node in enumerate(weights, 1)}
    plan.masks = {(number, TRANSPOSABLE): node for number, node in enumerate(masks, 1)}
    return plan


def test_every_product_of_a_weight_reads_one_mask() -> None:
    plan = ran(layers(KEPT))
    pruned = [d for d in plan.decisions if d.pruning]
    assert [str(d.gemm.role) for d in pruned] == ["fprop", "fprop", "dgrad", "dgrad"]
    for d in pruned:
        node = plan.products[d.site].node
        assert d.pruning is not None
        value = argument(node, d.pruning.operand.arg)
        while value.target is aten.permute.default:
            (value,) = value.all_input_nodes
        assert value.target is aten.where.self
    assert not plan.graph.find_nodes(op="call_function", target=nm.prune.default)
    found = all_kept(plan)
    assert [(k.number, k.life.refresh, k.life.decay) for k in found] == [
        (1, 40, 6e-6),
        (2, 40, 6e-6),
    ]


def test_masks_are_found_before_they_are_inputs() -> None:
    plan = layers(KEPT)
    plan.masks = {}
    before = str(plan.graph)
    assert len(all_kept(ran(plan, DECIDE))) == 2
    assert str(plan.graph) == before
    with pytest.raises(NMError, match="the graph has no input for the mask of w1"):
        ran(plan)


@pytest.mark.parametrize("method", ["transposable", "mse"])
def test_what_runs_sparse_is_compressed_under_the_kept_mask(method: str) -> None:
    roles = {} if method == "transposable" else {"role": "fprop"}
    rule = Rule(**{**TILES, "method": method, **roles})
    plan = layers(Policy(refresh=40, execution="sparse", rules=[rule]))
    if method == "mse":
        stored = StoredMask(NMFormat(2, 4), Method.MSE, (1,))
        plan.masks = {(number, stored): node for (number, _), node in plan.masks.items()}
    ran(plan)
    compressed = plan.graph.find_nodes(op="call_function", target=nm.compress.default)
    assert compressed
    for call in compressed:
        value = argument(call, "x")
        while value.target is aten.permute.default:
            (value,) = value.all_input_nodes
        assert value.target is aten.where.self
    assert not plan.graph.find_nodes(op="call_function", target=nm.prune.default)


def test_a_convolution_that_is_a_product_reads_its_mask_as_a_matrix() -> None:
    plan = given_masks(pointwise_convolution(SPARSE), SPARSE)
    (weight,) = plan.whole
    with plan.graph.inserting_after(weight):
        mask = plan.graph.placeholder("mask1")
    mask.meta["val"] = torch.empty_like(weight.meta["val"], dtype=torch.uint8)
    plan.masks = {(1, TRANSPOSABLE): mask}
    plan.kinds = {**plan.kinds, mask: OperandKind.WEIGHT}
    ran(plan)
    assert plan.graph.find_nodes(op="call_function", target=nm.mm.default)
    for node in plan.graph.find_nodes(op="call_function", target=aten.where.self):
        assert list(argument(node, "condition").meta["val"].shape) == [16, 32]


def test_two_rules_that_read_one_mask_must_agree() -> None:
    rules = [Rule(**TILES, role="fprop", refresh=40), Rule(**TILES, role="dgrad", refresh=20)]
    with pytest.raises(PolicyError, match=r"rule 1 \(fprop of .* rule 2 \(dgrad of .* 40 and 20"):
        ran(layers(Policy(rules=rules)), DECIDE)


def test_what_decays_is_said_by_the_forward_alone() -> None:
    rules = [Rule(**TILES, role="fprop", refresh=40, decay=0.1), Rule(**TILES, refresh=40)]
    plan = ran(layers(Policy(rules=rules)), DECIDE)
    assert [kept.life.decay for kept in all_kept(plan)] == [0.1, 0.1]
    said = {d.gemm.role: str(plan.reasons(d)[-1]) for d in plan.decisions if d.pruning}
    assert said[Role.FPROP] == "its mask is kept for 40 steps, and what it leaves out decays by 0.1"
    assert said[Role.DGRAD] == "its mask is kept for 40 steps"


def test_a_rule_without_refresh_takes_its_mask_in_each_step() -> None:
    rules = [Rule(**TILES, role="fprop", refresh=40), Rule(**TILES, role="dgrad")]
    plan = ran(layers(Policy(rules=rules)))
    assert len(plan.graph.find_nodes(op="call_function", target=nm.prune.default)) == 2
    assert len(plan.graph.find_nodes(op="call_function", target=aten.where.self)) >= 2


@pytest.mark.parametrize(
    ("shape", "weight", "why"),
    [
        ((8, 16), lambda w: w * 2.0, "it is computed by aten.mul"),
        ((8, 4, 4), lambda w: w.reshape(8, 16), "it is read in another shape"),
    ],
)
def test_a_weight_that_is_no_parameter_as_it_lies_is_dense(
    shape: tuple[int, ...], weight: Callable[[Tensor], Tensor], why: str
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(shape))

        def forward(self, x: Tensor) -> Tensor:
            return x @ weight(self.w).t()

    report = nmcompile.explain(Net(), torch.randn(4, 16), policy=KEPT)
    (site,) = [s for s in report.sites if s.role == "fprop"]
    assert site.has(Code.NOT_KEPT)
    assert f"cannot be kept: {why}" in site.reason
    assert report.graphs[0].kept == ()


def test_the_graph_of_a_layer() -> None:
    lines = rewritten(nn.Linear(16, 8), torch.randn(4, 16, requires_grad=True), policy=KEPT)
    products = [line.split(" = ")[1] for line in lines.splitlines() if "mm" in line.split(" =")[0]]
    assert products[0].startswith("aten.addmm(primals_2, primals_3, where")
    assert lines.count("aten.where.self(") == 2
    assert "nm.prune" not in lines
