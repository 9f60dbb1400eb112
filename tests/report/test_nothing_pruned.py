"""The warning about a policy that prunes nothing: what it says, and when there is none."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from nmcompile import NMWarning, Policy, Report, Rule
from nmcompile.gemm import OperandKind, Role
from nmcompile.reason import Code, Reason
from nmcompile.report.nothing_pruned import some_ran_eagerly, warn_if_nothing_pruned
from tests.report.samples import graph, site, skipped

PRUNE = {"prune": "activation", "role": "fprop", "format": "2:4"}
FORWARD = Policy(rules=[Rule(**PRUNE)])
TOO_SHORT = Reason(Code.TOO_SHORT, "too short")


def judge(policy: Policy, *sites: Any, **keys: Any) -> None:
    warn_if_nothing_pruned(Report.of(policy, (graph(*sites, **keys),)), policy)


def test_the_most_frequent_reasons_are_named_and_counted() -> None:
    codes = [Code.TOO_SHORT, Code.DTYPE, Code.WINDOWED, Code.NO_RULE]
    reasons = [Reason(code, f"reason {k}") for k, code in enumerate(codes)]
    sites = [site(reasons=(reasons[k],)) for k in (0, 1, 0, 2, 1, 0, 3, 2)]
    with pytest.warns(NMWarning) as caught:
        judge(FORWARD, *sites)
    assert str(caught[0].message) == (
        "nothing is pruned of 8 products: 3 x reason 0; 2 x reason 1; 2 x reason 2"
    )


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ({"module": "haed"}, "module = 'haed' matches no path (did you mean 'head'?)"),
        ({"class": "Liner"}, "class = 'Liner' matches no class (did you mean 'Linear'?)"),
    ],
)
def test_a_rule_that_names_nothing_is_the_reason(condition: Any, text: str) -> None:
    policy = Policy(rules=[Rule(**PRUNE, **condition)])
    with pytest.warns(NMWarning) as caught:
        judge(policy, site("head"))
    assert str(caught[0].message) == f"nothing is pruned of 1 products: <python>, rule 1: {text}"


def test_a_model_without_products_lists_what_was_skipped() -> None:
    fused = (skipped("a"), skipped("b"), skipped("c", "aten.mv"))
    with pytest.warns(NMWarning) as caught:
        judge(FORWARD, skipped=fused)
    assert str(caught[0].message) == (
        "nothing is pruned: the model has no matrix product and no convolution; "
        "skipped 2 x aten.flash: fused; skipped 1 x aten.mv: fused"
    )


@pytest.mark.parametrize(
    ("policy", "sites"),
    [
        (FORWARD, [site(pruned=OperandKind.ACTIVATION), site()]),
        (Policy.recipe("dense"), [site()]),
        (Policy.recipe("dense"), []),
        (Policy(), []),
        # The products that the rules are for do not exist in evaluation.
        (Policy.recipe("gradients"), [site()]),
        # It has its own warning.
        (FORWARD, [site(reasons=(Reason(Code.DECLINED, "declined"), TOO_SHORT))]),
    ],
)
def test_there_is_nothing_to_say(policy: Policy, sites: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(policy, *sites)


def test_rules_for_products_that_exist_are_blamed_alone() -> None:
    rules = [Rule(prune="gradient", format="2:4", module="nowhere"), Rule(**PRUNE)]
    with pytest.warns(NMWarning, match="of 1 products: 1 x too short$"):
        judge(Policy(rules=rules), site(reasons=(TOO_SHORT,)))
    with pytest.warns(NMWarning, match="rule 1: module = 'nowhere' matches no path"):
        judge(Policy(rules=rules), site(role=Role.DGRAD))


def test_weights_that_are_plain_tensors_are_hinted_at() -> None:
    plain = site(reasons=(Reason(Code.MATMUL_NOT_NAMED, "activation times activation"),))
    with pytest.warns(NMWarning, match="Weights must be parameters or buffers"):
        judge(FORWARD, plain, plain)
    with pytest.warns(NMWarning, match="too short$"):
        judge(FORWARD, plain, site(reasons=(TOO_SHORT,)))


def test_what_dynamo_says_twice_is_quoted_once() -> None:
    reason = some_ran_eagerly(["a", "a", "b", "a"])
    assert reason.text == (
        "not all of it can be compiled; torch.compile says: a; torch.compile says: b"
    )
