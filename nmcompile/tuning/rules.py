"""Rules for what was chosen product by product, as a person would write them.

Rules are found from the general to the special: the one that sets most products right comes first,
then the one that sets most of the rest right, and so on. The file has them the other way round,
since the first rule that matches decides; a rule that decides nothing by then is left out.
"""

from __future__ import annotations

import functools
import glob
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.policy import Policy, Rule

#: What is wanted of a product: the keys of a rule that decide, or that it stays dense.
Decision = tuple[tuple[str, str], ...]
DENSE: Decision = ()

_BACKWARD = (Role.DGRAD, Role.WGRAD)
#: Layers, which rules match that do not name ``op``.
_LAYERS = (Op.LINEAR, Op.CONV, Op.GROUPED)


@dataclass(frozen=True)
class Wanted:
    """A product as a rule sees it, and what is wanted of it; None where nothing can be pruned."""

    path: str
    module_class: str
    op: Op
    role: Role
    decision: Decision | None
    dtype: str = ""
    flops: float | None = None


@dataclass(frozen=True)
class _Candidate:
    rule: Rule
    decision: Decision
    matched: int  # a bit for each product
    plainness: int  # of two that do the same, the larger one is written


def policy_of(wanted: Sequence[Wanted]) -> Policy:
    """The policy that decides every product as it is wanted.

    Args:
        wanted: products that a rule can tell apart (path, class, op or role), each once.
    """
    chosen = _chosen(wanted)
    while True:
        policy = Policy(rules=[c.rule for c in chosen])
        decided = {id(_first(policy, w)) for w in wanted}
        idle = [n for n, rule in enumerate(policy.rules) if id(rule) not in decided]
        if not idle:
            return policy
        del chosen[idle[0]]


def _first(policy: Policy, product: Wanted) -> Rule | None:
    return next((rule for rule in policy.rules if rule.matches(product)), None)


def _chosen(wanted: Sequence[Wanted]) -> list[_Candidate]:
    """Rules in the order of a file."""
    if all(w.decision in (None, DENSE) for w in wanted):
        return []
    candidates = list(_candidates(wanted))
    want: dict[Decision, int] = defaultdict(int)
    for n, w in enumerate(wanted):
        if w.decision is not None:
            want[w.decision] |= 1 << n
    right = want[DENSE]  # without any rule all is dense
    everything = sum(want.values())
    found: list[_Candidate] = []
    while right != everything:
        best, most = None, (0, 0)
        for c in candidates:
            sets = (c.matched & want[c.decision] & ~right).bit_count()
            breaks = (c.matched & right & ~want[c.decision]).bit_count()
            if (sets - breaks, c.plainness) > most and sets > breaks:
                best, most = c, (sets - breaks, c.plainness)
        assert best is not None, "a product's own path, op and role set it right"
        right = (right & ~best.matched) | (best.matched & want[best.decision])
        found.append(best)
    return found[::-1]


def _candidates(wanted: Sequence[Wanted]) -> Iterator[_Candidate]:
    places = [*_places(wanted)]
    decisions = dict.fromkeys(w.decision for w in wanted if w.decision is not None)
    for decision, (place, plainness) in itertools.product(decisions, places):
        for roles in _roles(decision):
            keys: dict[str, Any] = {**place, **(dict(decision) or {"dense": True})}
            if roles is not None:
                keys["role"] = roles
            rule = Rule(**keys)
            bits = [1 << n for n, w in enumerate(wanted) if rule.matches(w)]
            if bits:
                fewer = -len(rule.role or ()) if decision is DENSE else len(rule.role or ())
                plain = 10 * plainness + fewer
                yield _Candidate(rule, decision, functools.reduce(int.__or__, bits), plain)


def _roles(decision: Decision) -> Iterator[tuple[Role, ...] | None]:
    if decision is DENSE:
        yield from (None, _BACKWARD, *((role,) for role in Role))
    elif dict(decision)["prune"] == OperandKind.GRADIENT:
        yield from (_BACKWARD, (Role.DGRAD,), (Role.WGRAD,))
    else:
        yield (Role.FPROP,)


def _places(wanted: Sequence[Wanted]) -> Iterator[tuple[dict[str, Any], int]]:
    """Conditions on module, class and op, and how plain they are to read."""
    yield {}, 9
    for name in dict.fromkeys(w.module_class for w in wanted):
        if name:
            yield {"class": glob.escape(name)}, 8
    seen: dict[str, int] = {}
    for path in dict.fromkeys(w.path for w in wanted):
        for pattern, plainness in _globs(path):
            seen.setdefault(pattern, plainness)
    for pattern, numbers in _numbered(wanted):
        seen.setdefault(pattern, 4 if len(numbers) > 1 else 0)
    for pattern, plainness in seen.items():
        yield {"module": pattern}, plainness
    ops = {(w.path, w.op) for w in wanted}
    for path, op in dict.fromkeys((w.path, w.op) for w in wanted):
        if sum(p == path for p, _ in ops) > 1 or op not in _LAYERS:
            yield {"module": glob.escape(path), "op": op}, 1


def _globs(path: str) -> Iterator[tuple[str, int]]:
    """Patterns that a path suggests: any number, everything inside, a name wherever it is."""
    names = [glob.escape(name) for name in path.split(".")]
    starred = ["*" if name.isdigit() else name for name in names]
    if starred != names:
        yield ".".join(starred), 7
    for inside in range(1, len(names)):
        yield ".".join([*starred[:inside], "*"]), 6
        yield ".".join([*names[:inside], "*"]), 5
    if not names[-1].isdigit() and len(names) > 1:
        yield f"*.{names[-1]}", 6
    yield ".".join(names), 3


def _numbered(wanted: Sequence[Wanted]) -> Iterator[tuple[str, list[str]]]:
    """Of modules that differ in one number: those for which the same is wanted."""
    alike: dict[Any, set[str]] = defaultdict(set)
    for w in wanted:
        names = w.path.split(".")
        for at, name in enumerate(names):
            if name.isdigit() and w.decision is not None:
                key = (*names[:at], None, *names[at + 1 :])
                alike[key, w.decision, w.role].add(name)
    # In all three roles, or in both of the backward, is one rule where it can be.
    sets = {(key, frozenset(numbers)) for (key, _, _), numbers in alike.items()}
    for key, some in sorted(sets, key=repr):
        numbers = sorted(some, key=int)
        yield _pattern(key, numbers), numbers


def _pattern(key: Iterable[str | None], numbers: Sequence[str]) -> str:
    if all(len(n) == 1 for n in numbers):
        inside = numbers[0] if len(numbers) == 1 else f"[{''.join(numbers)}]"
        return ".".join(inside if name is None else glob.escape(name) for name in key)
    either = f"({'|'.join(numbers)})"
    return "re:" + r"\.".join(either if name is None else re.escape(name) for name in key)
