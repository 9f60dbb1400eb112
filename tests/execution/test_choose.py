"""Sparse, simulated or dense: the decision for a product on a GPU, from fake CUDA tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from nmcompile.compressed.hardware import _CEILINGS, Target
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import PolicyError
from nmcompile.execution import choose as execution
from nmcompile.execution.choose import Execution, choose
from nmcompile.execution.cost import Estimate
from nmcompile.gemm import Gemm, OperandKind
from nmcompile.graph.find_gemms import find_gemms
from nmcompile.passes.assign import _pruning
from nmcompile.policy import Policy, Rule

H200 = Target(Layout.CUSPARSELT_SM90, ceilings=_CEILINGS["H200"])
RULE = Rule(prune="activation", role="fprop", format="2:4")


@pytest.fixture(autouse=True)
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "target_of", lambda device: H200)


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
    kinds = {nodes[0]: OperandKind.ACTIVATION, nodes[1]: OperandKind.WEIGHT}
    (gemm,) = find_gemms(graph, kinds)
    return gemm


def decide(gemm: Gemm, rule: Rule = RULE, autotune: bool = False, **policy: Any) -> Execution:
    return choose(gemm, _pruning(gemm, rule), rule, Policy(rules=[rule], **policy), autotune)


def test_a_large_product_runs_sparse_and_the_report_gets_both_figures() -> None:
    chosen = decide(product())
    assert (chosen.how, chosen.layout) == ("sparse", Layout.CUSPARSELT_SM90)
    assert chosen.estimate is not None
    assert chosen.estimate.speedup > 1.2
    assert "predicted: dense" in chosen.reason


def test_a_small_product_stays_dense_and_says_what_it_would_cost() -> None:
    chosen = decide(product(256, 256, 256))
    assert chosen.how == "dense"
    assert chosen.reason.startswith("execution = auto, fallback = dense; no gain of 1.05x: predict")


def test_the_margin_is_the_policys() -> None:
    gain = decide(product()).estimate
    assert gain is not None
    assert decide(product(), margin=gain.speedup * 1.01).how == "dense"
    assert decide(product(), margin=gain.speedup * 0.99).how == "sparse"


def test_fallbacks() -> None:
    small = product(64, 64, 64)
    assert decide(small, fallback="simulate").how == "simulate"
    with pytest.raises(PolicyError, match=r'asks for execution = "sparse", but no gain'):
        decide(small, execution="sparse", fallback="error")


def test_simulate_asks_nothing() -> None:
    assert decide(product(64, 64, 64), execution="simulate") == Execution("simulate")


def test_autotune_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(*arguments: Any) -> Estimate:
        asked.append(arguments)
        return Estimate(1e-3, 2e-3, "measured")

    monkeypatch.setattr(execution, "measure", measure)
    chosen = decide(product(8192, 4096, 2048), autotune=True)
    assert chosen.how == "dense"
    assert "measured: dense 1000 us, sparse 2000 us (0.50x)" in chosen.reason
    assert asked[0][:4] == (8192, 4096, 2048, True)


@pytest.mark.parametrize(
    ("gemm", "rule", "words"),
    [
        (product(dtype=torch.float32), RULE, "take bfloat16 and float16 here, not float32"),
        (product(), Rule(prune="activation", role="fprop", format="1:4"), "2:4 and 1:2, not 1:4"),
    ],
)
def test_what_no_library_multiplies(gemm: Gemm, rule: Rule, words: str) -> None:
    assert words in decide(gemm, rule).reason


def test_a_device_without_sparse_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Target(None, "Old GPU (compute capability 7.5) has no sparse tensor cores")
    monkeypatch.setattr(execution, "target_of", lambda device: lacking)
    assert decide(product()).how == "simulate"  # auto
    assert decide(product(), execution="sparse").reason.endswith("has no sparse tensor cores")


def test_a_device_without_figures_asks_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Target(Layout.CUSPARSELT_SM90)
    monkeypatch.setattr(execution, "target_of", lambda device: unknown)
    assert 'options={"nm.autotune": True}' in decide(product()).reason


def test_a_pruned_right_operand_is_charged_for_its_own_rows() -> None:
    rule = Rule(prune="weight", role="fprop", format="2:4", method="mse")
    gemm = product(65536, 1024, 8192)
    left, right = decide(gemm).estimate, decide(gemm, rule).estimate
    assert left is not None
    assert right is not None
    assert right.sparse < left.sparse


def test_the_role_does_not_matter_to_the_estimate() -> None:
    gemm = product()
    assert decide(replace(gemm, path="another")).estimate == decide(gemm).estimate
