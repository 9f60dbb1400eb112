"""Decide what each product gets: the rule, the operand to prune, or the reason it stays dense."""

from __future__ import annotations

import warnings
from dataclasses import replace

from nmcompile.errors import NMWarning, PolicyError
from nmcompile.execution.choose import Execution, choose
from nmcompile.gemm import Gemm, Op, Operand, Pruning
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.passes.plan import Decision, Plan, Product
from nmcompile.policy import Rule
from nmcompile.reason import Code, Reason

_FLOATS = ("float32", "float64", "bfloat16", "float16")


def assign(plan: Plan) -> None:
    """Decide every product of the plan, in graph order.

    Raises:
        PolicyError: a site cannot run as its rule asks and the rule says ``fallback = "error"``.
    """
    plan.decisions = tuple(_decide(site, gemm, plan) for site, gemm in enumerate(plan.gemms))
    plan.products = {
        d.site: Product(d.gemm.node, d.pruning.operand if d.pruning else None)
        for d in plan.decisions
    }
    declined = [d for d in plan.decisions if d.declined]
    if declined and not any(d.pruning for d in plan.decisions):
        first = declined[0].execution.reason
        warnings.warn(
            f"nothing is pruned: none of {len(declined)} products that the policy prunes runs "
            f"sparse here, and the fallback is dense; the first one: {first}. "
            'Write execution = "simulate" or fallback = "simulate" to prune them anyway',
            NMWarning,
            stacklevel=2,
        )


class _Dense(Exception):
    """Carries the reason that a product stays dense."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.reason = Reason(code, text)


def _decide(site: int, gemm: Gemm, plan: Plan) -> Decision:
    rule = _rule(gemm, plan)
    try:
        pruning = _pruning(gemm, rule)
    except _Dense as why:
        return Decision(site, gemm, rule, None, Execution("dense", (why.reason,)))
    assert rule is not None
    execution = choose(gemm, pruning, rule, plan.policy, plan.autotune)
    return Decision(site, gemm, rule, None if execution.how == "dense" else pruning, execution)


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
            text = f'{kinds}: dense unless a rule names op = "matmul"'
            raise _Dense(Code.MATMUL_NOT_NAMED, text)
        raise _Dense(Code.NO_RULE, "no rule matches")
    if rule.dense:
        raise _Dense(Code.RULE_DENSE, "the rule says dense")
    assert rule.prune is not None
    assert rule.format is not None
    assert rule.method is not None
    operand = next((o for o in gemm.operands if o.kind is rule.prune), None)
    if operand is None:
        kinds = " and ".join(str(o.kind) for o in gemm.operands)
        text = f"no {rule.prune} operand: this product has {kinds}"
        raise _Dense(Code.NO_SUCH_OPERAND, text)
    if gemm.dtype not in _FLOATS:
        text = f"{gemm.dtype} operands: masks exist for {', '.join(_FLOATS)}"
        raise _Dense(Code.DTYPE, text)
    _check_blocks(operand, rule.method, rule.format)
    exact = rule.backward == "exact"
    if exact and gemm.op is Op.MATMUL:
        text = 'backward = "exact" needs a product with a weight; this one has none'
        raise _Dense(Code.EXACT_NEEDS_WEIGHT, text)
    return Pruning(operand, rule.format, rule.method, exact)


def _check_blocks(operand: Operand, method: Method, nm: NMFormat) -> None:
    """Whether the operand has blocks of this format to prune."""
    if operand.obstacle is not None and method is not Method.TRANSPOSABLE:
        text = f"the {operand.kind} has no N:M block in place: {operand.obstacle}"
        raise _Dense(Code.WINDOWED, text)
    if nm.n == nm.m:
        raise _Dense(Code.KEEPS_ALL, f"{nm} keeps every element")
    if operand.extent is not None and operand.extent < nm.m:
        where = "each group has" if operand.groups > 1 else "the reduction dimension has"
        text = f"{where} {operand.extent} element(s), fewer than M = {nm.m}"
        raise _Dense(Code.TOO_SHORT, text)
