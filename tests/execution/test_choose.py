"""Sparse, simulated or dense: the decision for products of a target, from fake CUDA tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from nmcompile.compressed.layouts import Layout
from nmcompile.errors import PolicyError
from nmcompile.execution import choose as execution
from nmcompile.execution.choose import Chosen, Execution, Request, choose
from nmcompile.execution.cost import Predicted
from nmcompile.execution.targets import Figure, Figures, Target
from nmcompile.gemm import Gemm, OperandKind, Pruning
from nmcompile.graph.find_gemms import find_gemms
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.passes.assign import _pruning
from nmcompile.passes.plan import Plan
from nmcompile.policy import Policy, Rule
from nmcompile.reason import Code
from tests.execution.gpus import H200

RULE = Rule(prune="activation", role="fprop", format="2:4")
OLD = Target(
    name="old", gpu="Old", capability=(7, 5), reason="Old (7.5) has no sparse tensor cores"
)


def product(
    m: int = 8192, n: int = 8192, k: int = 8192, dtype: torch.dtype = torch.bfloat16
) -> Gemm:
    graph = fx.Graph()
    with FakeTensorMode():
        nodes = []
        for name, shape in (("x", (m, k)), ("w", (k, n))):
            node = graph.placeholder(name)
            node.meta["val"] = torch.empty(shape, dtype=dtype, device="cuda")
            nodes.append(node)
        mm = graph.call_function(torch.ops.aten.mm.default, tuple(nodes))
        mm.meta["val"] = torch.empty(m, n, dtype=dtype, device="cuda")
    graph.output(mm)
    given = {"x": OperandKind.ACTIVATION, "w": OperandKind.WEIGHT}
    (gemm,) = find_gemms(graph, operand_kinds(graph, lambda node: given[node.name]))
    return gemm


def pruning(gemm: Gemm, rule: Rule) -> Pruning:
    """What a rule prunes of a product, whatever else its graph holds."""
    return _pruning(gemm, rule, Plan(gemm.node.graph, {}, Policy()))


def figures(**values: float) -> Figures:
    """Those of ``H200``, with others."""
    assert H200.figures is not None
    changed = {k: Figure(value=v, known="assumed", source="here") for k, v in values.items()}
    return H200.figures.model_copy(update=changed)


def weigh(
    *gemms: Gemm,
    rule: Rule = RULE,
    target: Target = H200,
    autotune: bool = False,
    captured: bool = False,
    **policy: Any,
) -> Chosen:
    """Products that read one operand."""
    requests = [Request(i, g, pruning(g, rule), rule, key="x") for i, g in enumerate(gemms)]
    return choose(requests, Policy(rules=[rule], **policy), autotune, target, captured=captured)


def decide(gemm: Gemm, rule: Rule = RULE, **keys: Any) -> Execution:
    return weigh(gemm, rule=rule, **keys).executions[0]


def test_a_large_product_runs_sparse_and_the_report_gets_both_figures() -> None:
    chosen = decide(product())
    assert (chosen.how, chosen.layout, chosen.unit) == ("sparse", Layout.CUSPARSELT_SM90, 0)
    assert chosen.estimate is not None
    assert chosen.estimate.speedup > 1.2
    assert "predicted: dense" in chosen.reason


def test_a_small_product_stays_dense_and_says_what_it_would_cost() -> None:
    chosen = decide(product(256, 256, 256))
    assert chosen.how == "dense"
    assert chosen.reason.startswith("execution = auto, fallback = dense; no gain of 1.05x: predict")
    assert chosen.estimate is not None
    assert chosen.estimate.speedup < 1


def test_the_margin_is_the_policys() -> None:
    gain = decide(product()).estimate
    assert gain is not None
    assert decide(product(), margin=gain.speedup * 1.01).how == "dense"
    assert decide(product(), margin=gain.speedup * 0.99).how == "sparse"


def test_products_of_one_operand_are_decided_together() -> None:
    sizes = {"m": 16384, "k": 4096}
    narrow = [product(n=1024, **sizes) for _ in range(4)]
    assert decide(narrow[0]).how == "dense"
    together = weigh(*narrow)
    assert {e.how for e in together.executions.values()} == {"sparse"}
    assert {e.unit for e in together.executions.values()} == {0}
    assert "with its share of unit 0" in together.executions[0].reason
    (unit,) = together.units
    total = sum(e.estimate.sparse for e in together.executions.values() if e.estimate)
    assert total == pytest.approx(unit.estimate.weighed.sparse)


def test_what_is_left_out_says_beside_what() -> None:
    wide, small = product(16384, 14336, 512), product(16384, 4, 512)  # whose result is cut
    chosen = weigh(wide, small).executions
    assert [e.how for e in chosen.values()] == ["sparse", "dense"]
    assert "no gain of 1.05x beside the rest of unit 0: predicted" in chosen[1].reason


def test_the_host_counts_where_the_device_waits_for_it() -> None:
    """Twenty products of 35 us: a call may take the host 30 us, and not 60."""
    slow = H200.model_copy(update={"figures": figures(setup=60e-6)})
    small = [product(4096, 2048, 2048) for _ in range(20)]
    assert {e.how for e in weigh(*small).executions.values()} == {"sparse"}
    dense = weigh(*small, target=slow).executions.values()
    assert {e.how for e in dense} == {"dense"}
    assert all("with CUDA graphs (triton.cudagraphs), where" in e.reason for e in dense)
    captured = weigh(*small, target=slow, captured=True).executions.values()
    assert {e.how for e in captured} == {"sparse"}
    # Beside a product that keeps the device busy the host is ahead again.
    busy = weigh(*small, product(16384, 16384, 16384), target=slow).executions.values()
    assert {e.how for e in busy} == {"sparse"}


def test_fallbacks() -> None:
    small = product(64, 64, 64)
    assert decide(small, fallback="simulate").how == "simulate"
    with pytest.raises(PolicyError, match=r'asks for execution = "sparse", but no gain'):
        decide(small, execution="sparse", fallback="error")


def test_a_target_that_cannot_is_an_error_where_the_rule_asks_for_one() -> None:
    with pytest.raises(
        PolicyError, match=r"mm_default \(fprop\) asks .*, but Old \(7.5\) has no sparse"
    ):
        decide(product(), target=OLD, execution="sparse", fallback="error")


def test_simulate_asks_nothing() -> None:
    assert decide(product(64, 64, 64), execution="simulate") == Execution("simulate")


def test_autotune_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Timed(Predicted):
        how = "measured"

        def __init__(self, target: Target, device: str) -> None:
            super().__init__(target)
            asked.append(device)

        def sparse(self, *_: Any) -> float:
            return 2e-3

    monkeypatch.setattr(execution, "Measured", Timed)
    chosen = decide(product(8192, 4096, 2048), autotune=True)
    assert chosen.how == "dense"
    assert "measured: dense 177 us, sparse 2016 us (0.09x)" in chosen.reason
    assert asked == ["cuda:0"]


@pytest.mark.parametrize(
    ("gemm", "rule", "words"),
    [
        (product(dtype=torch.float64), RULE, "take bfloat16 and float16 here, not float64"),
        (product(), Rule(prune="activation", role="fprop", format="1:4"), "2:4 and 1:2, not 1:4"),
    ],
)
def test_what_no_library_multiplies(gemm: Gemm, rule: Rule, words: str) -> None:
    chosen = decide(gemm, rule)
    assert words in chosen.reason
    assert chosen.unit is None


def test_float32_products_say_what_autocast_would_give() -> None:
    chosen = decide(product(dtype=torch.float32))
    assert chosen.how == "dense"
    assert chosen.estimate is None
    sixteen = decide(product()).estimate
    text = f"TF32 products stay dense or simulated; under bfloat16 autocast {sixteen}"
    assert chosen.reason.endswith(text)
    assert chosen.reasons[-1].code is Code.SPARSE_DTYPE
    other = Rule(prune="activation", role="fprop", format="1:4")
    assert "autocast" not in decide(product(dtype=torch.float32), other).reason


def test_a_device_without_sparse_tensor_cores() -> None:
    assert decide(product(), target=OLD).how == "simulate"  # auto
    chosen = decide(product(), target=OLD, execution="sparse")
    assert chosen.reason.endswith("has no sparse tensor cores")


def test_a_device_without_figures_asks_to_measure() -> None:
    unknown = H200.model_copy(update={"figures": None})
    assert 'options={"nm.autotune": True}' in decide(product(), target=unknown).reason


def test_a_target_is_that_of_the_device_unless_one_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execution, "target_of", lambda device: OLD)
    gemm = product()
    requests = [Request(0, gemm, pruning(gemm, RULE), RULE, key="x")]
    policy = Policy(rules=[RULE])
    assert choose(requests, policy).executions[0].how == "simulate"
    assert choose(requests, policy, target=H200).executions[0].how == "sparse"


def test_a_pruned_right_operand_is_charged_for_its_own_rows() -> None:
    rule = Rule(prune="weight", role="fprop", format="2:4", method="mse")
    gemm = product(65536, 1024, 8192)
    left, right = decide(gemm).estimate, decide(gemm, rule).estimate
    assert left is not None
    assert right is not None
    assert right.sparse < left.sparse


def test_where_the_library_packs_only_equal_operands_are_decided_together() -> None:
    opaque = H200.model_copy(update={"layout": Layout.CUSPARSELT})
    gemm = product(16384, 1024, 4096)
    requests = [
        Request(site, gemm, pruning(gemm, RULE), RULE, key="x", along=along)
        for site, along in enumerate((1, 1, 0))
    ]
    chosen = choose(requests, Policy(rules=[RULE]), target=opaque)
    assert [unit.sites for unit in chosen.units] == [(0, 1), (2,)]
