"""The plan's list of products: all of them, under the paths of every module that shares the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from nmcompile import Policy
from nmcompile.capture.regions import Region
from nmcompile.gemm import OperandKind
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.passes.find import find
from nmcompile.passes.plan import Plan


def found(f: Callable[..., Any], *args: torch.Tensor, region: Region, path: str) -> Plan:
    gm = make_fx(f, tracing_mode="fake")(*args)
    for node in gm.graph.nodes:
        node.meta["nn_module_stack"] = {"key": (f"L['self']{path}", torch.nn.Linear)}
    before = str(gm.graph)
    kinds = operand_kinds(gm.graph, lambda n: OperandKind.ACTIVATION)
    plan = Plan(gm.graph, kinds, Policy.recipe("full"), region=region)
    find(plan)
    assert str(gm.graph) == before
    return plan


def attention(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    q = x @ w
    return F.scaled_dot_product_attention(q, q, q)


ARGS = (torch.randn(2, 2, 4, 8), torch.randn(8, 8))


def test_products_and_what_is_skipped_are_listed_beside_each_other() -> None:
    plan = found(attention, *ARGS, region=Region(), path=".fc")
    assert [g.target for g in plan.gemms] == ["aten.mm"]
    assert [s.target for s in plan.skipped] == ["aten._scaled_dot_product_flash_attention_for_cpu"]
    assert {x.path for x in (*plan.gemms, *plan.skipped)} == {"fc"}
    assert plan.decisions == ()


def test_paths_are_those_of_all_modules_that_share_the_graph() -> None:
    shared = Region(("layers.0", "layers.1"))
    for path, shown in ((".fc", "layers.{0..1}.fc"), ("", "layers.{0..1}")):
        plan = found(attention, *ARGS, region=shared, path=path)
        assert {x.path for x in (*plan.gemms, *plan.skipped)} == {shown}


def test_what_a_wrapper_adds_is_not_shown() -> None:
    plan = found(attention, *ARGS, region=Region(prefix="module"), path=".module.fc")
    assert {x.path for x in (*plan.gemms, *plan.skipped)} == {"fc"}
