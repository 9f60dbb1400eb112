"""Decide what each product gets: the rule, the operand to prune, or the reason it stays dense."""

from __future__ import annotations

from dataclasses import replace

from nmcompile.errors import PolicyError
from nmcompile.execution.choose import Execution, Request, choose
from nmcompile.execution.cost import Predicted
from nmcompile.execution.targets import target_of
from nmcompile.gemm import Gemm, Op, Operand, OperandKind, Pruning, Role, size_hint
from nmcompile.graph.aten import argument
from nmcompile.graph.float8 import NoCast, cast_of
from nmcompile.graph.stored_weight import StoredWeight
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.passes.kept_masks import kept_mask, note_kept
from nmcompile.passes.plan import Decision, KeptMask, Plan, Product
from nmcompile.passes.requests import reads_pruned, request
from nmcompile.policy import Rule
from nmcompile.reason import Code, Reason

_FLOATS = ("float32", "float64", "bfloat16", "float16")


def assign(plan: Plan) -> None:
    """Decide every product of the plan; those that share a compressed operand together.

    Raises:
        PolicyError: a site cannot run as its rule asks and the rule says ``fallback = "error"``.
    """
    executions: dict[int, Execution] = {}
    rules = [_rule(gemm, plan) for gemm in plan.gemms]
    for site, (gemm, rule) in enumerate(zip(plan.gemms, rules, strict=True)):
        try:
            pruning = _pruning(gemm, rule, plan)
            plan.kept |= _kept(plan, site, gemm, rule, pruning)
            plan.pruning[site] = pruning
        except _Dense as why:
            executions[site] = Execution("dense", (why.reason,))
    executions |= _choose(plan, rules)
    in_order = [executions[site] for site in range(len(plan.gemms))]
    plan.decisions = tuple(
        Decision(site, gemm, rules[site], _carried_out(plan, site, execution), execution)
        for site, (gemm, execution) in enumerate(zip(plan.gemms, in_order, strict=True))
    )
    plan.dense_seconds = _dense_seconds(plan)
    plan.products = {
        d.site: Product(d.gemm.node, d.pruning.operand if d.pruning else None)
        for d in plan.decisions
    }
    plan.weights = _stored_weights(plan)
    note_kept(plan)
    _warn_of_guesses(plan)
    declined = [d for d in plan.decisions if d.declined]
    if declined and not any(d.pruning for d in plan.decisions):
        first = declined[0].execution.reason
        plan.warn(
            f"nothing is pruned: none of {len(declined)} products that the policy prunes runs "
            f"sparse here, and the fallback is dense; the first one: {first}. "
            'Write execution = "simulate" or fallback = "simulate" to prune them anyway'
        )


def _warn_of_guesses(plan: Plan) -> None:
    """One sentence for each reason why products are dense that the policy would prune.

    Its text is the same for every graph that it holds for, so that Python shows it once.
    """
    guessed = [g for g in plan.gemms if g.guess and g.guess.code is not Code.SOLVER]
    guessed = [gemm for gemm in guessed if _is_meant(gemm, plan)]
    for why in dict.fromkeys(gemm.guess for gemm in guessed):
        plan.warn(f"products are dense whose role is unknown: {why}")


#: Where a product of two unknown operands may be a weight gradient.
_OP_UNKNOWN = (Code.IN_ENGINE, Code.IN_FUNCTION, Code.IN_SUBGRAPH, Code.BACKWARD_VALUE)


def _is_meant(gemm: Gemm, plan: Plan) -> bool:
    """Whether the policy prunes such a product in one of the roles that it may have."""
    paths = plan.region.each(gemm.path)
    assert gemm.guess is not None
    if gemm.guess.code is Code.LAYERS_UNKNOWN:
        return any(not rule.dense for rule in plan.policy.all_rules)
    ops = {gemm.op, Op.LINEAR} if gemm.guess.code in _OP_UNKNOWN else {gemm.op}
    sites = [replace(gemm, path=paths[0], role=role, op=op) for role in Role for op in ops]
    rules = [plan.policy.decide(site) for site in sites]
    return any(rule is not None and not rule.dense for rule in rules)


class _Dense(Exception):
    """Carries the reason that a product stays dense."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.reason = Reason(code, text)


def _choose(plan: Plan, rules: list[Rule | None]) -> dict[int, Execution]:
    """What may read a pruned operand of the forward is decided last, when that is known."""
    executions: dict[int, Execution] = {}
    first: list[Request] = []
    last: list[Request] = []
    for site, pruning in plan.pruning.items():
        rule = rules[site]
        assert rule is not None
        r = request(plan, site, plan.gemms[site], rule, pruning)
        (first if reads_pruned(plan, r) is None else last).append(r)
    _run(plan, first, executions)
    for number, r in enumerate(last):
        forward = reads_pruned(plan, r)
        if forward is not None and executions[forward].how != "dense":
            last[number] = replace(r, key=(r.key, r.site))
    _run(plan, last, executions)
    return executions


def _run(plan: Plan, requests: list[Request], executions: dict[int, Execution]) -> None:
    how = plan.autotune, plan.target, len(plan.units), plan.captured
    chosen = choose(requests, plan.policy, *how)
    executions |= chosen.executions
    plan.units += chosen.units


def _carried_out(plan: Plan, site: int, execution: Execution) -> Pruning | None:
    return None if execution.how == "dense" else plan.pruning.get(site)


def _stored_weights(plan: Plan) -> dict[int, StoredWeight]:
    """Of each forward product whose weight is pruned: the parameter in which it lies."""
    pruned = {
        d.site: (d.gemm.node, d.pruning.operand.arg)
        for d in plan.decisions
        if d.pruning and d.gemm.role is Role.FPROP and d.pruning.kind is OperandKind.WEIGHT
    }
    readers = {node for node, _ in pruned.values()}
    return {
        site: StoredWeight.of(argument(node, arg), readers, plan.kinds)
        for site, (node, arg) in pruned.items()
    }


def _dense_seconds(plan: Plan) -> dict[int, float]:
    """Of every 16-bit product, where the target has figures; convolutions as their products."""
    found: dict[int, float] = {}
    for site, gemm in enumerate(plan.gemms):
        target = plan.target or target_of(gemm.device)
        sixteen = gemm.dtype in ("bfloat16", "float16")
        if target.figures is not None and sixteen and gemm.has_hints:
            batch, m, n, k = map(size_hint, gemm.sizes)
            found[site] = Predicted(target).multiply(batch, m, n, k)
    return found


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
                f"{' but '.join(who)}, and the two share one compiled graph: {plan.region.advice}"
            )
    return rules[0]


def _pruning(gemm: Gemm, rule: Rule | None, plan: Plan) -> Pruning:
    if gemm.guess is not None and not (rule is not None and rule.dense):
        raise _Dense(gemm.guess.code, gemm.guess.text)
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
    _check_dtype(gemm, operand)
    _check_blocks(operand, rule.method, rule.format)
    exact = rule.backward == "exact"
    if exact and gemm.op is Op.MATMUL:
        text = 'backward = "exact" needs a product with a weight; this one has none'
        raise _Dense(Code.EXACT_NEEDS_WEIGHT, text)
    if gemm.role is Role.FPROP:
        _check_twice(plan, rule.method, exact)
    return Pruning(operand, rule.format, rule.method, exact)


def _kept(
    plan: Plan, site: int, gemm: Gemm, rule: Rule | None, pruning: Pruning
) -> dict[int, KeptMask]:
    """The mask that is kept for the product, where its rule asks for one."""
    life = plan.policy.life_of(rule) if rule is not None else None
    if life is None:
        return {}
    found = kept_mask(plan, gemm, pruning, life)
    if isinstance(found, str):
        text = f"the mask of its weight cannot be kept: {found}. Write refresh = 1 and decay = 0"
        raise _Dense(Code.NOT_KEPT, f"{text} in its rule, and it is taken in each forward")
    return {site: found}


def _check_dtype(gemm: Gemm, operand: Operand) -> None:
    """Whether there is a value to prune: the operand, or what it was cast to 8 bits from."""
    cast = cast_of(gemm.node, operand.arg)
    if isinstance(cast, NoCast):
        text = (
            f"no mask fits this {operand.kind}, {cast.why}: a mask is taken in high precision, "
            "before scale and cast"
        )
        raise _Dense(Code.NO_CAST, text)
    value = cast.source if cast else argument(gemm.node, operand.arg)
    dtype = str(value.meta["val"].dtype).removeprefix("torch.")
    if dtype not in _FLOATS:
        text = f"{dtype} operands: masks exist for {', '.join(_FLOATS)}"
        raise _Dense(Code.DTYPE, text)


def _check_twice(plan: Plan, method: Method, exact: bool) -> None:
    """Whether what runs a forward product once more would do the same."""
    if plan.apart and exact:
        text = 'backward = "exact" needs a backward in the same graph, and a branch or a loop has'
        text = f'{text} one of its own: take backward = "exact" out of its rule'
        raise _Dense(Code.IN_SUBGRAPH, text)
    if method.random and (plan.apart or plan.recomputed):
        text = "the backward computes it once more and would draw another mask"
        raise _Dense(Code.IN_SUBGRAPH, f'{text} ({method}): write method = "mse"')


def _check_blocks(operand: Operand, method: Method, nm: NMFormat) -> None:
    """Whether the operand has blocks of this format to prune."""
    if operand.obstacle is not None:
        text = f"the {operand.kind} has no N:M block in place: {operand.obstacle}"
        raise _Dense(Code.WINDOWED, text)
    if method is Method.TRANSPOSABLE and operand.tile_dims is None:
        text = f"the {operand.kind} has no tile: its groups lie along one dimension of a matrix"
        raise _Dense(Code.WINDOWED, text)
    if nm.n == nm.m:
        raise _Dense(Code.KEEPS_ALL, f"{nm} keeps every element")
    if operand.extent is not None and operand.extent < nm.m:
        where = "each group has" if operand.groups > 1 else "the reduction dimension has"
        text = f"{where} {operand.extent} element(s), fewer than M = {nm.m}"
        raise _Dense(Code.TOO_SHORT, text)
