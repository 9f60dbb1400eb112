"""Decide what each product gets: the rule, the operand to prune, or the reason it stays dense."""

from __future__ import annotations

import warnings
from dataclasses import replace

from nmcompile.errors import NMWarning, PolicyError
from nmcompile.execution.choose import choose
from nmcompile.gemm import Gemm, Op, Pruning
from nmcompile.masks.formats import Method
from nmcompile.passes.plan import Decision, Plan
from nmcompile.policy import Rule

_FLOATS = ("float32", "float64", "bfloat16", "float16")


def assign(plan: Plan) -> None:
    """Append one decision per product to the plan, in graph order.

    Raises:
        PolicyError: a site cannot run as its rule asks and the rule says ``fallback = "error"``.
    """
    plan.decisions = [_decide(site, gemm, plan) for site, gemm in enumerate(plan.gemms)]
    declined = [d for d in plan.decisions if d.reason.startswith("execution = ")]
    if declined and not any(d.pruning for d in plan.decisions):
        warnings.warn(
            f"nothing is pruned: none of {len(declined)} products that the policy prunes runs "
            f"sparse here, and the fallback is dense; the first one: {declined[0].reason}. "
            'Write execution = "simulate" or fallback = "simulate" to prune them anyway',
            NMWarning,
            stacklevel=2,
        )


class _Dense(Exception):
    """Carries the sentence that says why a product stays dense."""


def _decide(site: int, gemm: Gemm, plan: Plan) -> Decision:
    rule = _rule(gemm, plan)
    try:
        pruning = _pruning(gemm, rule)
    except _Dense as why:
        return Decision(site, gemm, rule, None, "dense", str(why), gemm.node)
    assert rule is not None
    chosen = choose(gemm, pruning, rule, plan.policy, plan.autotune)
    return Decision(
        site,
        gemm,
        rule,
        None if chosen.how == "dense" else pruning,
        chosen.how,
        chosen.reason,
        gemm.node,
        chosen.layout,
        chosen.estimate,
    )


def _rule(gemm: Gemm, plan: Plan) -> Rule | None:
    """The rule that decides the product in every module of the region.

    Raises:
        PolicyError: the modules share one graph, and the policy treats them differently.
    """
    paths = plan.region.each(gemm.path)
    rules = [plan.policy.decide(replace(gemm, path=path)) for path in paths]
    for path, rule in zip(paths, rules, strict=True):
        if rule is not rules[0]:
            who = [
                f"{r.label if r else 'no rule'} decides {p}"
                for p, r in ((paths[0], rules[0]), (path, rule))
            ]
            raise PolicyError(
                f"{' but '.join(who)}, and the two share one compiled graph: let "
                'nmcompile.compile(model, policy, each="...") compile the blocks, which gives '
                "those that differ code of their own"
            )
    return rules[0]


def _pruning(gemm: Gemm, rule: Rule | None) -> Pruning:
    if rule is None:
        if gemm.op is Op.MATMUL:
            kinds = " times ".join(str(o.kind) for o in gemm.operands)
            raise _Dense(f'{kinds}: dense unless a rule names op = "matmul"')
        raise _Dense("no rule matches")
    if rule.dense:
        raise _Dense("the rule says dense")
    assert rule.prune is not None
    assert rule.format is not None
    assert rule.method is not None
    operand = next((o for o in gemm.operands if o.kind is rule.prune), None)
    if operand is None:
        kinds = " and ".join(str(o.kind) for o in gemm.operands)
        raise _Dense(f"no {rule.prune} operand: this product has {kinds}")
    method, nm = rule.method, rule.format
    if gemm.dtype not in _FLOATS:
        raise _Dense(f"{gemm.dtype} operands: masks exist for {', '.join(_FLOATS)}")
    if operand.obstacle is not None and not method == Method.TRANSPOSABLE:
        raise _Dense(f"the {operand.kind} has no N:M block in place: {operand.obstacle}")
    if nm.n == nm.m:
        raise _Dense(f"{nm} keeps every element")
    if operand.extent is not None and operand.extent < nm.m:
        where = "each group has" if operand.groups > 1 else "the reduction dimension has"
        raise _Dense(f"{where} {operand.extent} element(s), fewer than M = {nm.m}")
    exact = rule.backward == "exact"
    if exact and gemm.op is Op.MATMUL:
        raise _Dense('backward = "exact" needs a product with a weight; this one has none')
    return Pruning(operand, nm, method, exact)
