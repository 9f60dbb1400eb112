"""Rules for what was chosen: they decide exactly that, and read as if written by hand."""

from __future__ import annotations

import random

import pytest

from nmcompile import Policy
from nmcompile.gemm import Op, Role
from nmcompile.tuning.rules import DENSE, Decision, Wanted, policy_of

ACTIVATION: Decision = (("prune", "activation"), ("format", "2:4"))
GRADIENT: Decision = (("prune", "gradient"), ("format", "2:4"))


def wanted(path: str, role: str, decision: Decision | None, op: Op = Op.LINEAR) -> Wanted:
    """A product of a layer; its class follows from its operator."""
    name = "Conv2d" if op is Op.CONV else "Linear"
    return Wanted(path, name, op, Role(role), decision, "float32", 1e6)


def decided(policy: Policy, product: Wanted) -> Decision:
    """What the policy does to a product."""
    rule = policy.decide(product)
    if rule is None or rule.dense:
        return DENSE
    return (("prune", str(rule.prune)), ("format", str(rule.format)))


def model(decide: object) -> list[Wanted]:
    """Three roles of the layers of a network; ``decide(path, role)`` says what is wanted."""
    paths = [f"blocks.{n}.{name}" for n in range(4) for name in ("qkv", "mlp.up", "mlp.down")]
    return [
        wanted(path, role, decide(path, role))  # type: ignore[operator]
        for path in [*paths, "lm_head"]
        for role in ("fprop", "dgrad", "wgrad")
    ]


def short(policy: Policy) -> list[tuple[str | None, list[str] | None, str]]:
    """Module, roles and decision of each rule."""
    return [
        (r.module, r.role and [*map(str, r.role)], "dense" if r.dense else f"{r.prune} {r.format}")
        for r in policy.rules
    ]


def test_what_is_wanted_everywhere_is_a_rule_without_a_module() -> None:
    policy = policy_of(model(lambda path, role: ACTIVATION if role == "fprop" else GRADIENT))
    assert sorted(short(policy)) == [
        (None, ["dgrad", "wgrad"], "gradient 2:4"),
        (None, ["fprop"], "activation 2:4"),
    ]


def test_an_exception_comes_first() -> None:
    def decide(path: str, role: str) -> Decision:
        return GRADIENT if role != "fprop" and path != "blocks.2.mlp.up" else DENSE

    assert short(policy_of(model(decide))) == [
        ("blocks.2.mlp.up", None, "dense"),
        (None, ["dgrad", "wgrad"], "gradient 2:4"),
    ]


def test_one_layer_of_all_blocks_and_some_blocks() -> None:
    policy = policy_of(model(lambda p, r: ACTIVATION if r == "fprop" and "up" in p else DENSE))
    assert short(policy) == [("blocks.*.mlp.up", ["fprop"], "activation 2:4")]
    policy = policy_of(
        model(lambda p, r: GRADIENT if r == "wgrad" and p[7:] in ("0.qkv", "2.qkv") else DENSE)
    )
    assert short(policy) == [("blocks.[02].qkv", ["wgrad"], "gradient 2:4")]


def test_numbers_of_two_digits_are_a_regular_expression() -> None:
    some = [
        wanted(f"layers.{n}.fc", "fprop", ACTIVATION if n in (3, 11, 19) else DENSE)
        for n in range(24)
    ]
    assert short(policy_of(some)) == [
        (r"re:layers\.(3|11|19)\.fc", ["fprop"], "activation 2:4"),
    ]


def test_a_class_tells_convolutions_apart() -> None:
    some = [
        wanted(path, "fprop", ACTIVATION if "conv" in path else DENSE, op)
        for path, op in (
            *((f"a{n}.conv", Op.CONV) for n in range(3)),
            ("stem.conv", Op.CONV),
            ("b.fc", Op.LINEAR),
            ("c.fc", Op.LINEAR),
        )
    ]
    (rule,) = policy_of(some).rules
    assert rule.class_ == "Conv2d"


def test_two_operators_of_one_module_are_told_apart() -> None:
    some = [
        wanted("moe", "fprop", ACTIVATION, Op.GROUPED),
        wanted("moe", "fprop", DENSE, Op.LINEAR),
    ]
    policy = policy_of(some)
    assert [decided(policy, w) for w in some] == [ACTIVATION, DENSE]


def test_nothing_chosen_is_no_rule() -> None:
    assert policy_of(model(lambda path, role: DENSE)).rules == ()


@pytest.mark.parametrize("seed", range(30))
def test_any_choice_is_decided_exactly(seed: int) -> None:
    draw = random.Random(seed)
    names = ["a[0]", "layers.1.w", "layers.12.w", "x.3.y.4.z", "x.3.y.5.z", "", "layers.1", "q*"]
    some = []
    for name in names:
        for role in Role:
            kinds = [DENSE, None, ACTIVATION if role is Role.FPROP else GRADIENT]
            kinds.append((("prune", "weight"), ("format", "1:2")) if role is Role.FPROP else DENSE)
            some.append(wanted(name, role, draw.choice(kinds)))
    policy = policy_of(some)
    for w in some:
        assert w.decision is None or decided(policy, w) == w.decision
    used = {id(policy.decide(w)) for w in some}
    assert all(id(rule) in used for rule in policy.rules)
    assert Policy.loads(policy.to_toml()) == policy
