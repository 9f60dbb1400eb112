"""Make a failing case small: delete rules, outputs and statements while the same check fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from fuzzing.builder import NAMES
from fuzzing.case import Case, Find
from fuzzing.checks import check
from fuzzing.network import Block, Input, Network, Statement, live_statements, load

Fingerprint = tuple[str, bool, str]


def fails(case: Case) -> Fingerprint | None:
    """What fails: the check, whether it is upstream's, the type of the exception behind it."""
    try:
        check(case)
    except Find as find:
        return find.check, find.upstream, type(find.__cause__).__name__
    except Exception as error:
        return "error", False, type(error).__name__
    return None


def shrink(
    case: Case,
    seconds: float = 120,
    fails: Callable[[Case], Fingerprint | None] = fails,
) -> Case:
    """The smallest case found in the given time that fails as ``case`` does."""
    wanted, deadline = fails(case), time.monotonic() + seconds
    if wanted is None:
        return case
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(case):
            if time.monotonic() > deadline:
                return case
            if candidate != case and _runs(candidate) and fails(candidate) == wanted:
                case, smaller = candidate, True
                break
    return case


def _runs(case: Case) -> bool:
    try:
        program = load(case.network)
        program.model(*program.inputs)
    except Exception:  # whatever a network that was cut in two raises, it is no network
        return False
    return True


def _candidates(case: Case) -> Iterator[Case]:
    network = case.network
    assert isinstance(network, Network)
    for smaller in _networks(network):
        yield replace(case, network=smaller.live())
    for rules in _rules(case.rules):
        if rules:
            yield replace(case, rules=rules)


def _rules(rules: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for i, rule in enumerate(rules):
        before, after = rules[:i], rules[i + 1 :]
        yield before + after
        for key in rule:
            if key not in ("prune", "format", "method", "dense"):
                yield [*before, {k: v for k, v in rule.items() if k != key}, *after]
        if rule.get("format", "2:4") != "2:4":
            yield [*before, {**rule, "format": "2:4"}, *after]


def _networks(network: Network) -> Iterator[Network]:
    for output in network.outputs:
        rest = tuple(o for o in network.outputs if o != output)
        if rest:
            yield replace(network, outputs=(output,))
            yield replace(network, outputs=rest)
    values = _values(network)
    for s in network.statements:
        yield from _without(network, s, values)
    for number, block in enumerate(network.blocks):
        for smaller in _smaller_blocks(block):
            blocks = (*network.blocks[:number], smaller, *network.blocks[number + 1 :])
            yield replace(network, blocks=blocks)
    for number, i in enumerate(network.inputs):
        if i.requires_grad:
            fewer = list(network.inputs)
            fewer[number] = replace(i, requires_grad=False)
            yield replace(network, inputs=tuple(fewer))


def _without(network: Network, gone: Statement, values: dict[str, Tensor]) -> Iterator[Network]:
    """The statement's value replaced by an earlier one that fits, or by a fresh input."""
    rest = tuple(s for s in network.statements if s is not gone)
    outputs = tuple(o for o in network.outputs if o != gone.out)
    value = values.get(gone.out)
    if value is None:
        return
    if not any(gone.out in s.inputs for s in rest):
        yield replace(network, statements=rest, outputs=outputs or gone.inputs[:1])
        return
    for earlier in gone.inputs:
        old = values[earlier]
        if old.shape == value.shape and old.dtype == value.dtype:
            outputs_ = outputs or (earlier,)
            yield replace(network, statements=_renamed(rest, gone.out, earlier), outputs=outputs_)
    if value.is_floating_point() and outputs:
        shape = ", ".join(map(str, value.shape))
        dtype = NAMES[value.dtype]
        name = f"x{len(network.inputs)}{gone.out}"
        code = f"torch.randn(({shape}{',' if shape else ''}), generator=g).to({dtype})"
        fresh = Input(name, code, value.requires_grad)
        inputs = (*network.inputs, fresh)
        statements = _renamed(rest, gone.out, name)
        yield replace(network, statements=statements, outputs=outputs, inputs=inputs)


def _renamed(statements: tuple[Statement, ...], old: str, new: str) -> tuple[Statement, ...]:
    return tuple(
        replace(s, inputs=tuple(new if i == old else i for i in s.inputs)) for s in statements
    )


def _smaller_blocks(block: Block) -> Iterator[Block]:
    for gone in block.statements:
        rest = tuple(s for s in block.statements if s is not gone)
        for earlier in gone.inputs:
            output = earlier if block.output == gone.out else block.output
            statements = live_statements(_renamed(rest, gone.out, earlier), (output,))
            yield replace(block, statements=statements, output=output)


def _values(network: Network) -> dict[str, Tensor]:
    """Every value of the network's own forward."""
    program = load(network)
    names = [i.name for i in network.inputs]
    scope: dict[str, Any] = dict(zip(names, program.inputs, strict=True))
    scope |= {"self": program.model} | type(program.model).forward.__globals__
    for statement in network.statements:
        exec(statement.line(), scope)
    wanted = [*names, *(s.out for s in network.statements)]
    return {name: scope[name] for name in wanted}
