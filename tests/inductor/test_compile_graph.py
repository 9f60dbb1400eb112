"""What is handed to Inductor, and where the report comes from; Inductor itself is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from nmcompile import NMWarning, Policy
from nmcompile.capture.inputs import Capture
from nmcompile.capture.ranks import Ranks
from nmcompile.inductor import compile_graph as module
from nmcompile.inductor.compile_graph import compile_graph
from nmcompile.inductor.hooks import JointPass, PostPass
from nmcompile.inductor.options import Settings
from nmcompile.inductor.plan_only import Planned
from nmcompile.report.report import GraphReport

SETTINGS = Settings(Policy.recipe("full"), {"max_fusion_size": 8})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def report(digest: str) -> GraphReport:
    return GraphReport(
        digest=digest, training=False, sites=(), skipped=(), before="before", after="after"
    )


def traced() -> tuple[fx.GraphModule, list[Any]]:
    gm = fx.symbolic_trace(lambda x, w: x @ w)
    return gm, [torch.randn(4, 8), nn.Parameter(torch.randn(8, 6))]


class Inductor:
    """Notes what it is given; ``runs``: whether the passes run, which a warm cache spares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
        self.runs, self.planned = runs, 0
        self.patches: list[dict[str, Any]] = []
        monkeypatch.setattr(module._torch, "compile_fx", self.compile)
        monkeypatch.setattr(module, "plan_only", self.plan)

    def compile(self, gm: fx.GraphModule, inputs: Any, patches: dict[str, Any]) -> str:
        self.patches.append(patches)
        joint = patches["joint_custom_pre_pass"]
        if self.runs:
            joint.reports.append(report(joint.digest))
        gm.graph.erase_node(gm.graph.output_node())  # it may change the graph in place
        return "compiled"

    def plan(self, gm: fx.GraphModule, inputs: Any, settings: Settings) -> Planned:
        gm.graph.output_node()  # a copy that was made before
        self.planned += 1
        digest = self.patches[-1]["joint_custom_pre_pass"].digest
        return Planned(None, [report(digest).model_copy(update={"before": "planned"})], [])


MakeInductor = Callable[[bool], Inductor]


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> MakeInductor:
    return lambda runs: Inductor(monkeypatch, runs)


def test_both_passes_and_the_users_settings_are_handed_over(inductor: MakeInductor) -> None:
    made = inductor(True)
    compiled, reports = compile_graph(*traced(), SETTINGS)
    (patches,) = made.patches
    joint, post = patches["joint_custom_pre_pass"], patches["post_grad_custom_pre_pass"]
    assert isinstance(joint, JointPass)
    assert isinstance(post, PostPass)
    assert joint.digest == post.digest
    assert joint.build_kernels
    assert patches["max_fusion_size"] == 8
    assert compiled == "compiled"
    assert reports == [report(joint.digest)]


def test_a_warm_cache_is_reported_from_the_disk(inductor: MakeInductor) -> None:
    inductor(True)
    _, cold = compile_graph(*traced(), SETTINGS)
    warm = inductor(False)
    assert compile_graph(*traced(), SETTINGS)[1] == cold
    assert warm.planned == 0


def test_what_was_warned_of_is_warned_of_on_a_warm_cache(
    inductor: MakeInductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = {"warnings": ("products are dense", "products are dense")}
    plain = report
    monkeypatch.setitem(
        globals(), "report", lambda digest: plain(digest).model_copy(update=warning)
    )
    inductor(True)
    compile_graph(*traced(), SETTINGS)
    inductor(False)
    with pytest.warns(NMWarning, match="products are dense") as told:
        compile_graph(*traced(), SETTINGS)
    assert len(told) == 1


def test_a_warm_cache_without_a_report_is_planned_once_more(
    inductor: MakeInductor, caplog: pytest.LogCaptureFixture
) -> None:
    warm = inductor(False)
    with caplog.at_level("INFO", logger="nmcompile"):
        for _ in range(2):
            (found,) = compile_graph(*traced(), SETTINGS)[1]
            assert found.before == "planned"
    assert warm.planned == 1
    assert caplog.text.count("warm cache without a stored report") == 1


def test_passes_that_run_are_right_whatever_is_stored(inductor: MakeInductor) -> None:
    inductor(False)
    compile_graph(*traced(), SETTINGS)
    inductor(True)
    found = compile_graph(*traced(), SETTINGS)[1]
    assert found != [report("planned")]
    inductor(False)
    assert compile_graph(*traced(), SETTINGS)[1] == found


def test_another_policy_has_a_report_of_its_own(inductor: MakeInductor) -> None:
    inductor(True)
    other = replace(SETTINGS, policy=Policy.recipe("dense"))
    digests = [compile_graph(*traced(), s)[1][0].digest for s in (SETTINGS, other, SETTINGS)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("ranks", [None, Ranks()])
def test_ranks_compare_their_plans(
    ranks: Ranks | None, inductor: MakeInductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inductor(True)
    capture, compared, seeds = Capture(frozenset(), "graph", ranks), [], []
    monkeypatch.setattr(module.Capture, "of", lambda *_: capture)
    monkeypatch.setattr(module, "check_plans", lambda *given: compared.append(given))
    monkeypatch.setattr(module, "check_seeds", lambda sharing: seeds.append(sharing))
    for settings in (SETTINGS, replace(SETTINGS, autotune=True)):
        compile_graph(*traced(), settings)
    assert [graph for graph, *_ in compared] == (["graph"] * 2 if ranks else [])
    assert len({ours for _, ours, _ in compared}) == len(compared)
    assert seeds == []  # nothing is shared
